"""Find numbers in texts, however they are written."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

from experiments.data.spelling import SPACED, unboxed

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
_SPELLED = r"(?<=\s)(?:[a-z]{2,}|[mgshlVWAJNK](?=[23\u00b2\u00b3]?\W*$|\^|/))"
# after a number: 5 km, 5\text{ m}, 5 m^2, 90^\circ, 50\%; a letter alone may be a variable
UNIT = re.compile(rf"\d\)?\s*(?:\\[,;:! ]\s*)*(?:{_NAMED}|{_SPELLED})", re.I)
_MINUS = re.compile("[\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d](?=\\.?\\d)")  # signs and dashes used for a minus
_SEPARATOR = re.compile("(?<=\\d)[\uff0c\u066c\uff0e\u066b\uff0f\u2044](?=\\d)")  # , . / of other scripts
_PLAIN = str.maketrans("\uff0c\u066c\uff0e\u066b\uff0f\u2044", ",,..//")
_SIGN = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")  # a fraction in one sign
_ELSEWHERE = re.compile(  # numbers as many countries write them; in brackets, next to another number or ,7 it is a list
    rf"(?<!{SPACED})(?<![.,(\[{{^])(?<!\d )"
    r"(?:[1-9]\d{0,2}(?:(?: \d{3}){1,9}(?:[.,]\d{1,20})?|(?:\.\d{3}){2,9}(?:,\d{1,20})?)"  # 1 234,5  1.234.567
    r"|[1-9]\d{0,2}\.\d{3},\d{1,20}|0,\d{1,20}|[1-9]\d{0,19},(?:\d{1,2}|\d{4,20})"  # 1.234,5  0,125  3,5  1,00
    r"|[1-9]\d{3,19},\d{3})"  # 1525,441: no thousands
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
    r"(?:(?<![\w.,])((?:\d{1,3}(?:,\d{3}){1,9}|\d+)(?:\.\d+)?)\s?(?:\\times|\\cdot|[\u00d7\u00b7*x])\s?|(?<![\w.,^]))10"
    rf"(?:\s?\^\s?(?:\{{\s?([-+]?\d{{1,3}})\s?\}}|([-+]?\d{{1,3}}))(?!\d|\.\d)|(\u207b?[{_UP}]{{1,3}}))"
)
_UNIT = re.compile(  # a power of a unit is no number: m^2, \\text{cm}^3, s^{-2}; after a number, m2 too
    r"(?<=[A-Za-z}])\s?\^\s?(?:\{\s?[-+]?\d+\s?\}|[-+]?\d+)|(?<=\d)\s?(?:[kdcm\u00b5]?m|ft|in|yd|mi)[23](?!\w|\.\d)"
)

_STROKE = re.compile(r"(?<=\d) / (?=\d)")
_MIXED = re.compile(  # 1 1/2; the limits keep it linear
    r"(?<![\d.,/^_}])(?<![\^_]\{)((?!0)\d{1,3}(?:,\d{3}){1,9}|\d{1,30})[ \u00a0]+(\d{1,30})/(\d{1,30})(?![\d/])"
)


def in_other_base(answer: str, reply: str) -> bool:
    """Whether both name the base of their last number, and not the same one: 1010_2 and 1010_8."""
    wanted, said = _BASED.findall(answer), _BASED.findall(reply)
    return bool(wanted and said) and wanted[-1] != said[-1]


def mixed_as_one(text: str) -> str:
    """Return a text in which 1 1/2 is 3/2."""
    return _MIXED.sub(_improper, text)


def _improper(mixed: re.Match[str]) -> str:
    """Return a mixed number as one fraction; the text as it is if the fraction is not below 1."""
    whole, top, bottom = (int(part.replace(",", "")) for part in mixed.groups())
    return f"{whole * bottom + top}/{bottom}" if top < bottom else mixed[0]


def tidy(text: str) -> str:
    """Return a text in one spelling: composed letters, -5 with a hyphen, 1 1/2, nothing but commas between thousands.

    Commas, points and strokes of other scripts between digits become ours. Spaces of a full width stay, since they may
    be between two numbers.
    """
    text = unicodedata.normalize("NFC", text).replace("{,}", ",")  # LaTeX's comma without a space after it
    text = _SIGN.sub(_written_out, text)
    text = _SEPARATOR.sub(lambda found: found[0].translate(_PLAIN), text)
    return _GROUP.sub("", _MINUS.sub("-", text))


def _written_out(sign: re.Match[str]) -> str:
    number_before = sign.start() > 0 and sign.string[sign.start() - 1].isdecimal()
    return " " * number_before + unicodedata.normalize("NFKC", sign[0]).replace("\u2044", "/")


def in_one_spelling(text: str) -> str:
    """Return `tidy` text with the numbers of other countries as 1234.5: from 1 234,5, 1.234,5, 1.234.567, 3,5, 1,00.

    1,234 and 1.234 are ambiguous, and stay a thousand and one and a bit. \\frac{1}{2} becomes 1/2, 1 1/2 becomes 3/2,
    -$5 becomes -5, 3 \u00d7 10^8 becomes 3e8, and boxes of LaTeX and powers of units go.
    """
    text = _STROKE.sub("/", _FRACTION.sub(_with_stroke, unboxed(tidy(text))))
    text = _SCIENTIFIC.sub(_with_exponent, _ELSEWHERE.sub(lambda found: _digits(found[0]), text))
    text = _UNIT.sub("", text)
    text = _APART.sub(r"\1-", amounts_signed(text))
    return mixed_as_one(text)


def amounts_signed(text: str) -> str:
    """Return a text in which -$5 is -5."""
    return _AMOUNT.sub("-", text)


def _with_stroke(found: re.Match[str]) -> str:
    """Return a/b for a fraction of LaTeX, apart from a whole number before it."""
    after, sign, top, _, digit, bottom, other = found.groups()
    return f"{'' if after is None else ' '}{sign or ''}{top or digit}/{bottom or other}"


def _with_exponent(found: re.Match[str]) -> str:
    factor, braced, bare, raised = found.groups()
    power = braced or bare or unicodedata.normalize("NFKC", raised).replace("\u2212", "-")
    return f"{(factor or '1').replace(',', '')}e{power}"


def _digits(number: str) -> str:
    whole, comma, decimals = number.replace(" ", "").partition(",")
    if not comma and " " in number:  # 1 234.5
        return whole
    return whole.replace(".", "") + ("." if comma else "") + decimals


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text, such as 1,007.5, -2e-3, 1/3 or 1 1/2; None if it has none, or divides by 0.

    The minus of 12-5 is no sign.
    """
    found = NUMBER.findall(in_one_spelling(text))
    top, _, bottom = found[-1].replace(",", "").partition("/") if found else ("0", "", "0")
    return Decimal(top) / Decimal(bottom or 1) if Decimal(bottom or 1) else None
