"""Find numbers in texts, however they are written."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

from experiments.data.spelling import SPACED

_THOUSANDS = r"(?!0)\d{1,3}(?:,\d{3})+(?!\d)|\d+"  # commas between thousands only: not in 0,125
_DIGITS = rf"(?:(?:{_THOUSANDS})(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d+)?"  # 1,007  2.5  .5  1e-3
_LAKHS = r"\d{1,2}(?:,\d{2}){1,20},\d{3}(?!\d)(?:\.\d+)?"  # commas as in India: 10,00,000; a limit keeps it linear
WHOLE = re.compile(rf"[-+]?(?:{_LAKHS}|{_DIGITS})")  # a text that is a number and nothing else
# in a text: the minus of 12-5 is no sign, and 1/3 is one number
_SIGNED = rf"(?:(?<!{SPACED})(?<![.)])(?<!\d[\u3040-\u9fff])[-+])?"  # not the one of 12-5, or of 3\u6708-5\u6708
NUMBER = re.compile(rf"{_SIGNED}(?:{_LAKHS}|(?<![\d/]){_DIGITS}/\d+(?![\d/])|{_DIGITS})")
COMMAS = re.compile(r"(?:(?<![\w.,])[-+])?\d+(?:[.,]\d+)*")  # 3,5 with a decimal comma, or the list 1,2,3
_BASED = re.compile(r"(?<![\w.])[0-9A-F.]+_\{?(\d+)\}?(?!\w)")  # 1010_2, FF_{16}
_NAMED = r"\\(?:text|mathrm|mbox|textrm|textbf|operatorname)\s*\{\s*[A-Za-z]|\^?\s?\{?\\circ|\u00b0|\\?%"
_SPELLED = r"(?<=\s)(?:[a-z]{2,}|[mgshlVWAJNK](?=\W*$|\^|/))"
# after a number: 5 km, 5\text{ m}, 5 m^2, 90^\circ, 50\%; a letter alone may be a variable
UNIT = re.compile(rf"\d\)?\s*(?:\\[,;:! ]\s*)*(?:{_NAMED}|{_SPELLED})", re.I)
_ONE_SIGN = "\u00bc-\u00be\u2150-\u215e\u2189"  # fractions in one sign
_MINUS = re.compile(f"[\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d](?=\\.?\\d|[{_ONE_SIGN}])")  # dashes, too
_SEPARATOR = re.compile("(?<=\\d)[\uff0c\u066c\uff0e\u066b\uff0f\u2044](?=\\d)")  # , . / of other scripts
_PLAIN = str.maketrans("\uff0c\u066c\uff0e\u066b\uff0f\u2044", ",,..//")
_SIGN = re.compile(f"[{_ONE_SIGN}]")
_ELSEWHERE = re.compile(  # numbers as many countries write them; in brackets, next to another number or ,7 it is a list
    rf"(?<!{SPACED})(?:(?<![.,(\[{{])|(?<=\\[(\[])|(?<=[a-z]{{))(?<!\d )"  # but not in LaTeX's \(3,5\)
    r"(?:[1-9]\d{0,2}(?:(?: \d{3}){1,9}(?:[.,]\d{1,20})?|(?:\.\d{3}){2,9}(?:,\d{1,20})?)"  # 1 234,5  1.234.567
    r"|[1-9]\d{0,2}\.\d{3},\d{1,20}|0,\d{1,20}|[1-9]\d{0,19},(?:\d{1,2}|\d{4,20}))"  # 1.234,5  0,125  3,5  1,00
    r"(?!\d|[.,/]\d| \d)"
)
_FRACTION = re.compile(  # of whole numbers in LaTeX: \frac{1}{2}, \dfrac12
    r"(?:(?<=\d)\s*())?\\[dtc]?frac\s*(?:\{\s*(-?)(\d+)\s*\}|()(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))"
)
_AMOUNT = re.compile(
    rf"(?<!{SPACED})(?<![.)])(?<!\d )[-\u2010-\u2013\u2212]\s?\\?[$\u20ac\u00a3\u00a5]\s?(?=\.?\d)"
)  # the minus of -$5
_APART = re.compile(r"(?<=[=(])(\s*)-\s+(?=\.?\d)")  # that of x = - 5
_GROUP = re.compile(r"(?<=\d)(?:[\u00a0\u2007\u2009\u202f'\u2019]|\\[,;])(?=\d{3}(?!\d))")  # 1'234, or LaTeX's 1\,234

_UP = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079"
_SCIENTIFIC = re.compile(  # 3 \u00d7 10^8, 10^{-3}, 5\\cdot10\u2076
    r"(?:(?<![\w.,])(\d+(?:\.\d+)?)\s?(?:\\times|\\cdot|[\u00d7\u00b7*x])\s?|(?<![\w.,^]))10"
    rf"(?:\s?\^\s?(?:\{{\s?([-+]?\d{{1,3}})\s?\}}|([-+]?\d{{1,3}}))(?!\d|\.\d)|(\u207b?[{_UP}]{{1,3}}))"
)
_UNIT = re.compile(  # a power of a unit is no number: m^2, \\text{cm}^3, s^{-2}; after a number, m2 too
    r"(?<=[A-Za-z}])\s?\^\s?(?:\{\s?[-+]?\d+\s?\}|[-+]?\d+)|(?<=\d)\s?(?:[kdcm\u00b5]?m|ft|in|yd|mi)[23](?!\w|\.\d)"
)

_MIXED = re.compile(r"(?<![\d.,/^_}])(?<![\^_]\{)(\d{1,30}) (\d{1,30})/(\d{1,30})(?![\d/])")  # 1 1/2
_STOP = re.compile(r"(?<=\d)\.(?=[\s\"'\u2019\u201d)*_`$}]|\\[)\]]|$)")  # after a number, at the end of a sentence
_POWER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?[eE][-+]?\d{1,2}(?!\w|\.\d)")  # 1.6e-19
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")  # small digits above the line, and their minus
_ROOT = re.compile(r"\u221a\s*(?:\(([^()]*)\)|(\w+))")


def as_latex(text: str) -> str:
    """Return `tidy` text in which 1 1/2 and 1\u00bd are 3/2, 1e-3 is 0.001, and x\u00b2, \u221a2, \u221e are LaTeX's.

    The full stop of a sentence goes: with it, 5/6. would be a rounded number.
    """
    text = mixed_as_one(_STOP.sub("", _SIGN.sub(_written_out, tidy(text))))
    text = _POWER.sub(lambda found: f"{Decimal(found[0]):f}", text)
    text = _RAISED.sub(lambda found: f"^{{{unicodedata.normalize('NFKC', found[0]).replace(chr(0x2212), '-')}}}", text)
    return _ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2]}}}", text).replace("\u221e", r"\infty ")


def in_other_base(answer: str, reply: str) -> bool:
    """Whether both name the base of their last number, and not the same one: 1010_2 and 1010_8."""
    wanted, said = _BASED.findall(answer), _BASED.findall(reply)
    return bool(wanted and said) and wanted[-1] != said[-1]


def mixed_as_one(text: str) -> str:
    """Return a text in which 1 1/2 is 3/2."""
    return _MIXED.sub(_improper, text)


def _improper(mixed: re.Match[str]) -> str:
    """Return a mixed number as one fraction; the text as it is if the fraction is not below 1."""
    whole, top, bottom = (int(part) for part in mixed.groups())
    return f"{whole * bottom + top}/{bottom}" if top < bottom else mixed[0]


def tidy(text: str) -> str:
    """Return a text in one spelling: composed letters, -5 with a hyphen, nothing but commas between thousands.

    Commas, points and strokes of other scripts between digits become ours. Spaces of a full width stay, since they may
    be between two numbers.
    """
    text = unicodedata.normalize("NFC", text).replace("{,}", ",")  # LaTeX's comma without a space after it
    text = _SEPARATOR.sub(lambda found: found[0].translate(_PLAIN), text)
    return _GROUP.sub("", _MINUS.sub("-", text))


def in_one_spelling(text: str) -> str:
    """Return `tidy` text with the numbers of other countries as 1234.5: from 1 234,5, 1.234,5, 1.234.567, 3,5, 1,00.

    1,234 and 1.234 are ambiguous, and stay a thousand and one and a bit. \\frac{1}{2} becomes 1/2, -$5 becomes -5,
    3 \u00d7 10^8 becomes 3e8, and powers of units go.
    """
    text = _SCIENTIFIC.sub(_with_exponent, _FRACTION.sub(_with_stroke, tidy(text)))
    text = _UNIT.sub("", text)
    text = _APART.sub(r"\1-", _AMOUNT.sub("-", text))
    return _ELSEWHERE.sub(lambda found: _digits(found[0]), text)


def _with_stroke(found: re.Match[str]) -> str:
    """Return a/b for a fraction of LaTeX, apart from a whole number before it."""
    after, sign, top, _, digit, bottom, other = found.groups()
    return f"{'' if after is None else ' '}{sign or ''}{top or digit}/{bottom or other}"


def _with_exponent(found: re.Match[str]) -> str:
    factor, braced, bare, raised = found.groups()
    power = braced or bare or unicodedata.normalize("NFKC", raised).replace("\u2212", "-")
    return f"{factor or 1}e{power}"


def _digits(number: str) -> str:
    whole, comma, decimals = number.replace(" ", "").partition(",")
    if not comma and " " in number:  # 1 234.5
        return whole
    return whole.replace(".", "") + ("." if comma else "") + decimals


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text, such as 1,007.5, -2e-3, 1/3 or 1 1/2; None if it has none, or divides by 0.

    The minus of 12-5 is no sign.
    """
    text = _SIGN.sub(_written_out, in_one_spelling(text))
    found = list(NUMBER.finditer(text))
    value = _value(found[-1][0]) if found else None
    if value is None or len(found) < 2 or not _is_mixed(*found[-2:]):
        return value
    whole = Decimal(found[-2][0].replace(",", ""))
    return whole + value.copy_sign(whole)


def _written_out(sign: re.Match[str]) -> str:
    apart = "" if sign.string[: sign.start()].endswith(("-", "+")) else " "
    return apart + unicodedata.normalize("NFKC", sign[0]).replace("\u2044", "/")


def _value(number: str) -> Decimal | None:
    top, _, bottom = number.replace(",", "").partition("/")
    return Decimal(top) / Decimal(bottom or 1) if Decimal(bottom or 1) else None


def _is_mixed(whole: re.Match[str], part: re.Match[str]) -> bool:
    """Whether two numbers are one, such as 1 1/2: a whole number, a space and a fraction below 1."""
    top, stroke, bottom = part[0].partition("/")
    between = whole.string[whole.end() : part.start()]
    below = bool(stroke) and top.isdecimal() and Decimal(top) < Decimal(bottom)
    return below and between.strip(" \u00a0") == "" and re.fullmatch(r"[-+]?[\d,]+", whole[0]) is not None
