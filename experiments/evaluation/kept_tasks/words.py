"""Kept tasks about English words: past tense and plurals (lemminflect), and the number of a verb."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from experiments.evaluation.kept_tasks.question import Template

VERBS = """
    go stop take walk make try come study see look get play give plan find carry think drop tell marry become ask
    leave hurry feel work bring grab begin cry keep call hold hug write help stand reply hear turn mean start meet
    apply run show sit rob speak move lead beg grow enjoy lose live fall admit send believe build happen
    understand prefer draw include break permit spend copy rise continue drive worry buy change wear deny choose
    watch seek bury throw follow catch create deal tidy win open forget add fight visit teach listen eat offer
    sing wonder drink love swim dance ride smile shake bake steal decide sell arrive sleep save swear agree blow
    talk freeze hide shrink ring shoot sink stick swing feed bleed breed lend dig strike bite lay
"""

# each with its plural as inflect, a dictionary, forms it; importing that takes two seconds
NOUNS = """
    child/children city/cities man/men box/boxes woman/women dog/dogs foot/feet baby/babies tooth/teeth
    church/churches mouse/mice key/keys goose/geese story/stories knife/knives bus/buses wife/wives monkey/monkeys
    wolf/wolves dish/dishes leaf/leaves lady/ladies life/lives toy/toys half/halves army/armies boy/boys
    shelf/shelves berry/berries loaf/loaves glass/glasses calf/calves family/families elf/elves dress/dresses
    hero/heroes potato/potatoes fox/foxes tomato/tomatoes cat/cats crisis/crises party/parties analysis/analyses
    bench/benches thesis/theses puppy/puppies basis/bases class/classes hypothesis/hypotheses match/matches
    phenomenon/phenomena bush/bushes criterion/criteria peach/peaches bacterium/bacteria tree/trees stimulus/stimuli
    fly/flies alumnus/alumni valley/valleys diagnosis/diagnoses wish/wishes parenthesis/parentheses piano/pianos
    oasis/oases roof/roofs nucleus/nuclei chief/chiefs echo/echoes cliff/cliffs house/houses river/rivers
    vertebra/vertebrae lunch/lunches company/companies watch/watches kiss/kisses boss/bosses tax/taxes brush/brushes
    body/bodies cherry/cherries photo/photos radio/radios studio/studios belief/beliefs month/months path/paths
    judge/judges bridge/bridges language/languages village/villages orange/oranges face/faces voice/voices
    prize/prizes nurse/nurses teacher/teachers king/kings horse/horses book/books car/cars flower/flowers
    kangaroo/kangaroos zoo/zoos video/videos brother/brothers window/windows garden/gardens bottle/bottles
    table/tables pencil/pencils country/countries lens/lenses sister/sisters road/roads school/schools
    letter/letters number/numbers street/streets lake/lakes hill/hills hat/hats cup/cups
"""


def past_tense() -> list[Template]:
    """Ask the past tense of a verb; the other options are its other forms (go, goes, going, gone)."""
    import lemminflect

    templates = []
    for verb in VERBS.split():
        past = lemminflect.getInflection(verb, "VBD")
        forms = (verb, *(form for tag in ("VBZ", "VBG", "VBN") for form in lemminflect.getInflection(verb, tag)))
        plain, chat = f'The past tense of the verb "{verb}" is', f"Every day they {verb}. What did they do last week?"
        reworded = f'The past tense form of "{verb}" is', f"Today they {verb}. What did they do yesterday?"
        templates.append(Template(verb, plain, chat, past[0], _without(past, forms), "They {}.", reworded))
    return templates


def plurals() -> list[Template]:
    """Ask the plural of a noun; the other options are mistakes of learners (mouses, mices).

    Nouns on whose plural two dictionaries disagree are left out.
    """
    import lemminflect

    templates = []
    for noun, _, right in (pair.partition("/") for pair in NOUNS.split()):
        accepted = lemminflect.getInflection(noun, "NNS")
        if right not in accepted:
            continue
        made_up = (noun + "s", noun + "es", noun[:-1] + "ies", right + "s", right + "es")
        plain, chat = f'The plural of the noun "{noun}" is', f'What is the plural of the noun "{noun}"?'
        reworded = f'The plural form of "{noun}" is', f'Which form does the noun "{noun}" take in the plural?'
        wrong = _without((noun, *accepted), made_up)
        templates.append(Template(noun, plain, chat, right, wrong, reworded=reworded))
    return templates


SUBJECTS = """
    author teacher pilot doctor farmer manager guard lawyer driver singer painter student waiter nurse neighbor uncle
    key letter picture car boat bottle chair lamp
"""
FRAMES = (
    "The {} near the {}",
    "The {} behind the {}",
    "The {} next to the {}",
    "The {} in front of the {}",
    "The {} that we saw with the {}",
    "The {} that nobody noticed near the {}",
)
VERB_FORMS = (("is", "are"), ("was", "were"), ("has", "have"), ("needs", "need"))


def agreement() -> list[Template]:
    """Ask which form of a verb agrees with its subject; a noun of the other number is nearer to the verb.

    Minimal pairs: two options, chance 1/2, and no second wording. A fixed shuffle mixes frames, numbers and verbs.
    """
    nouns = SUBJECTS.split()
    cells = list(itertools.product(range(len(nouns)), (1, 5), FRAMES, (True, False)))
    templates = []
    for index, (subject, distance, frame, plural) in enumerate(cells):
        other = nouns[(subject + distance) % len(nouns)]
        start = frame.format(nouns[subject] + "s" * plural, other + "s" * (not plural))
        singular_form, plural_form = VERB_FORMS[index % len(VERB_FORMS)]
        right, wrong = (plural_form, singular_form) if plural else (singular_form, plural_form)
        chat = f"Continue this sentence: {start}"
        templates.append(Template(start, start, chat, right, (wrong,), reply=f"{start} {{}}"))
    random.Random(0).shuffle(templates)
    return templates


def _without(right: Sequence[str], forms: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct forms that are not right."""
    return tuple(dict.fromkeys(form for form in forms if form not in right))
