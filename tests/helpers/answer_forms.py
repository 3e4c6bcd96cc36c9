"""Ways to write an answer, and ways to say one in a reply: each grader must read each pair, and tell near misses apart.

`python -m tests.helpers.answer_forms [GRADER ...]` tries the whole product and prints what fails.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from experiments.data.graders import read_grader
from experiments.data.items import Item, NewTask
from experiments.data.matching import exact_match
from experiments.evaluation.replies import parse_answer

NUMERIC, MATH, CONTAINS, EXACT = "numeric", "math", "contains", "exact"
NONE = "none"  # no grader, where all answers are numbers


class Form(NamedTuple):
    """One answer. said: its spellings, equal for `numeric` and `math`. missed: other answers that look alike.

    graders: those that read it as one answer. local: spellings that `numeric` reads, and to `math` are lists. word: it
    is no formula, so that `math` reads it as `exact` does.
    """

    said: Sequence[str]
    missed: Sequence[str]
    graders: Sequence[str] = (NUMERIC, MATH, CONTAINS, EXACT, NONE)
    local: Sequence[str] = ()
    word: bool = False


def read() -> dict[str, Form]:
    """Return the forms of the file next to this one."""
    read = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {name: Form(**values) for name, values in read.items()}


FORMS = read()
AROUND = {  # read by all; the first by `exact`, too
    "bare": "{}",
    "stop": "{}.",
    "exclamation": "{}!",
    "question": "{}?",
    "comma": "{},",
    "semicolon": "{};",
    "colon": "{}:",
    "box": r"\boxed{{{}}}",
    "box and stop": r"\boxed{{{}}}.",
    "dollars": "${}$",
    "double dollars": "$${}$$",
    "dollars and box": r"$\boxed{{{}}}$",
    "dollars and stop": "${}$.",
    "round LaTeX": r"\({}\)",
    "square LaTeX": r"\[{}\]",
    "square LaTeX on lines": "\\[\n{}\n\\]",
    "bold": "**{}**",
    "bold and stop": "**{}.**",
    "italics": "*{}*",
    "code": "`{}`",
    "quotes": '"{}"',
    "quotes and stop": '"{}".',
    "single quotes": "'{}'",
    "curly quotes": "\u201c{}\u201d",
    "text": r"\text{{{}}}",
    "boxed text": r"\boxed{{\text{{{}}}}}",
    "answer": "Answer: {}",
    "bold answer": "**Answer:** {}",
    "final answer": "Final answer: **{}**",
    "worked": "We add them up.\n\n{}",
}
INSIDE = {
    "sentence": "The answer is {}.",
    "sentence!": "The answer is {}!",
    "sentence?": "Is it {}?",
    "sentence,": "It is {}, so we are done.",
    "sentence;": "It is {}; that is all.",
    "sentence:": "The answer is: {}",
    "brackets": "({})",
    "square brackets": "[{}]",
    "in brackets": "We are done (it is {}).",
    "equals": "x = {}",
    "dollars equals": "$x = {}$",
    "hashes": "#### {}",
    "then": "{}\nI hope this helps!",
    "sentence then": "The answer is {}.\n\nI hope this helps!",
    "bold sentence": "The answer is **{}**.",
    "bold then": "**{}**\nI hope this helps!",
    "dollars in a sentence": "So the answer is ${}$.",
    "box in a sentence": r"So the answer is $\boxed{{{}}}$.",
    "box then": "\\[\\boxed{{{}}}\\]\n\nThus we are done.",
    "JSON text": '{{"answer": "{}"}}',
    "JSON": '{{"answer": {}}}',
    "HTML": "The answer is <b>{}</b>.",
    "tags": "<answer>{}</answer>",
}
WRAPPERS = {**AROUND, **INSIDE}


class Case(NamedTuple):
    grader: str
    form: str
    wrapper: str
    answer: str
    reply: str
    right: bool


def cases(grader: str, whole: bool = True) -> Iterator[Case]:
    """Yield what a grader must call right and wrong. whole: also answers in spellings of their own."""
    for name, form in FORMS.items():
        if grader not in form.graders:
            continue
        around = AROUND if grader == EXACT or (grader == MATH and form.word) else WRAPPERS
        for wrapper in around:
            for answer, said, right in pairs(form, grader, whole):
                if fits(wrapper, said):
                    yield Case(grader, name, wrapper, answer, around[wrapper].format(said), right)


def pairs(form: Form, grader: str, whole: bool) -> Iterator[tuple[str, str, bool]]:
    """Yield an answer, what is said, and whether it is right."""
    equal = grader in (NUMERIC, MATH) or (form.word and grader == EXACT)
    spellings = form.said if grader == MATH else [*form.said, *form.local]
    for answer in spellings:
        kind = task(answer).form if grader == NONE else None
        if kind == "text":
            continue
        alike = (equal and whole) or kind == "number"
        yield from ((answer, said, True) for said in spellings if said == answer or alike)
        if whole or answer == form.said[0]:
            yield from ((answer, said, False) for said in form.missed)


def fits(wrapper: str, said: str) -> bool:
    """Whether a wrapper is not also a sign of what it is around: in brackets, 3,5 and 1 234 are lists."""
    if "brackets" in wrapper and wrapper != "in brackets":
        return not any(sign in said for sign in ", []()")
    said = said.replace(r"\$", "").replace("\u2019", "'")
    return not any(sign in said and sign in WRAPPERS[wrapper] for sign in "$'*")


def task(answer: str) -> NewTask:
    """Return a task of one question without a grader."""
    return NewTask("task", (Item("q", answer),), exact_match)


def fails(case: Case) -> bool:
    """Whether a case is graded wrongly."""
    if case.grader == NONE:
        asked = task(case.answer)
        return asked.correct(parse_answer(case.reply, asked.form), asked.test[0]) != case.right
    return made(case.grader)(case.reply, {"answer": case.answer}) != float(case.right)


made = functools.cache(read_grader)


def main(graders: list[str]) -> None:
    for grader in graders or [NONE, NUMERIC, CONTAINS, EXACT, MATH]:
        tried = list(cases(grader))
        failed = [case for case in tried if fails(case)]
        print(f"{grader}: {len(failed):,} of {len(tried):,} fail")
        for case in failed:
            print(
                "  ",
                *case[1:3],
                repr(case.answer),
                repr(case.reply),
                "is right" if case.right else "is wrong",
                sep=" | ",
            )


if __name__ == "__main__":
    main(sys.argv[1:])
