"""Find the formula that a reply ends with, in LaTeX's signs, and the number that it may be."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

from experiments.data.grader import DATED
from experiments.data.matching import FRACTION, STOPS, peeled
from experiments.data.numerals import NUMBER, UNIT, WHOLE, amounts_signed, in_one_spelling, mixed_as_one, tidy
from experiments.data.spelling import UNSPACED, closed

BOX = r"\boxed{"
LIST = re.compile(r"[-+]?\d+,(?!\d{3}(?!\d))\d+")  # 3,5: to `math` a list, to `numeric` a number
TIMED = re.compile(rf"(?:{DATED.pattern})(?:\s?[ap]\.?\s?m\.?)?", re.I)  # with a.m. or p.m.
_STOP = re.compile(r"(?<=\d)\.(?=[\s\"'\u2019\u201d)*_`$}]|\\[)\]]|$)")  # after a number, at the end of a sentence
_POWER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?[eE][-+]?\d{1,2}(?!\w|\.\d)")  # 1.6e-19
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")  # small digits above the line, and their minus
_ROOT = re.compile(r"\u221a\s*(?:\(([^()]*)\)|(\w+))")
_SIGNS = str.maketrans({"\u221e": r"\infty ", "\u03c0": r"\pi ", "\u00b0": r"^\circ ", "\u20ac": "", "\u00a3": ""})
_APART = re.compile(r"</?[A-Za-z]\w*>|\n|(?<![\\A-Za-z])[A-Za-z]{2,}(?![A-Za-z{])")  # between formulas: tags and words
_COMMAND = re.compile(r"\\[A-Za-z]")
_FORMULA = re.compile(r"\d|\\[A-Za-z]")
_NAME = re.compile(r"\\?[A-Za-z]\w{0,9}\s*=(?=[^=]*$)")  # x = 5 is 5
_BEFORE = " \t\"'`*#:;,!?<>"  # a formula; a full stop may begin .5
_STOPS = STOPS.replace("!", "")  # 5! is 120
_AROUND = f"{_BEFORE}."
_MONEY = " \\$\u20ac\u00a3\u00a5"
_OPEN, _CLOSE = re.compile(r"[\[({]"), re.compile(r"[\])}]")
_ALONE = re.compile(r"[\[(]([^\[\](),;]*)[\])]")  # [5] is 5


def as_latex(text: str) -> str:
    """Return `tidy` text in which 1 1/2 is 3/2, 1e-3 is 0.001, and x\u00b2, \u221a2, \u221e are LaTeX's.

    The full stop of a sentence goes: with it, 5/6. would be a rounded number.
    """
    text = amounts_signed(mixed_as_one(_STOP.sub("", tidy(text))))
    text = _POWER.sub(lambda found: f"{Decimal(found[0]):f}", text)
    text = _RAISED.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found[0]).replace(chr(0x2212), '-')}}}", text)
    return _ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2]}}}", text).translate(_SIGNS)


def as_formula(text: str) -> str:
    """Return a text in LaTeX without a mark around it, and a number in one spelling: 12345 of 12 345, 1500 of 1.5e3."""
    *_, text = peeled(text, stops=_STOPS)
    number = in_one_spelling(_NAME.sub("", text, count=1)).strip(_MONEY)
    if LIST.fullmatch(tidy(text).strip(_MONEY)):
        return text
    if WHOLE.fullmatch(number):
        return f"{Decimal(number.replace(',', '')):f}"
    return number if FRACTION.fullmatch(number) else as_latex(text)


def amount(answer: str) -> str:
    """Return the number of an answer that is a number with a unit, such as 5 km or 10 apples; else an empty text."""
    text = in_one_spelling(answer).strip(_MONEY)
    numbers = NUMBER.findall(text)
    alone = len(numbers) == 1 and text.startswith(numbers[0]) and not _COMMAND.search(text)
    return numbers[0] if alone and UNIT.search(answer) else ""


def percentage(answer: str) -> str:
    """Return an answer that is a number of percent in LaTeX; else an empty text."""
    return rf"{amount(answer)}\%" if re.search("%|per ?cent", answer, re.I) and amount(answer) else ""


def is_list(answer: str) -> bool:
    """Whether an answer is two numbers to `math`, and one with a decimal comma to `numeric`."""
    return LIST.fullmatch(answer.strip()) is not None


def is_timed(answer: str) -> bool:
    """Whether an answer may be a time, a date or a range: 12:30, 2024-01-05, 1990-2000. To `math` it is a number."""
    text = answer.strip(" $.")
    return TIMED.fullmatch(text) is not None and not FRACTION.fullmatch(text)


def last_box(reply: str) -> str:
    """Return what the last \\boxed{} holds; an empty text if there is none."""
    start = reply.rfind(BOX) + len(BOX)
    return reply[start : max(closed(reply, start) - 1, start)] if BOX in reply else ""


def last_formula(reply: str) -> str:
    """Return the last formula or number of a reply between words, without punctuation and quotes around it."""
    parts = [part for part in _APART.split(UNSPACED.sub("\n", as_latex(reply))) if _FORMULA.search(part)]
    last = _balanced(parts[-1].rstrip(_AROUND).lstrip(_BEFORE)) if parts else ""
    return found[1] if (found := _ALONE.fullmatch(last)) else last


def _balanced(text: str) -> str:
    """Return a text without brackets at its ends that are not opened or closed in it, as in `it is 5)`."""
    for _ in range(4):
        more = len(_CLOSE.findall(text)) - len(_OPEN.findall(text))
        if more > 0 and text[-1] in "])}":
            text = text[:-1].rstrip("\\").rstrip(_AROUND)
        elif more < 0 and text[0] in "[({":
            text = text[1:].lstrip(_BEFORE)
        else:
            return text
    return text
