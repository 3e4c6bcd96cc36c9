"""Compare words in any script: where a word ends, and which marks around words are no part of them."""

from __future__ import annotations

import html
import re

_HANGUL = "\uac00-\ud7af"  # words have spaces before them, but particles after them
_UNSPACED = (  # letters of scripts without spaces between words, without their digits
    "\u0e00-\u0e4f\u0e5a-\u0ecf\u0eda-\u0eff\u1000-\u103f\u104a-\u108f\u109a-\u109f\u1780-\u17df\u17ea-\u17ff"
    "\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
SPACED = rf"[^\W_{_UNSPACED}{_HANGUL}]"  # a letter or digit next to which no other word can begin
UNSPACED = re.compile(f"[{_UNSPACED}{_HANGUL}]")
_AFTER_ANY = re.compile(f"[{_UNSPACED}]")
_AMOUNT = re.compile(r"[\d\\$\u20ac\u00a3\u00a5]")
_NUMBER = re.compile(r"[-+]?[\d,]*(?:\.\d+|\d)")
_STRAIGHT = str.maketrans(  # quotes: curly ones, angles and corners; hyphens: Unicode's, and the one that never breaks
    "\u2018\u2019\u201a\u201b\u2039\u203a\u201c\u201d\u201e\u201f\u00ab\u00bb\u300c\u300d\u300e\u300f\u2010\u2011",
    '\'\'\'\'\'\'""""""""""--',
    "\u00ad",  # a hyphen that is seen at the end of a line alone
)
_NAMES = "a|b|big|blockquote|br|center|code|del|div|em|font|h[1-6]|hr|i|img|ins|li|mark|ol|p|pre|q|s|small|span|strike"
_TAG = re.compile(
    rf"</?(?:{_NAMES}|strong|sub|sup|table|tbody|td|th|thead|tr|tt|u|ul)(?:\s+[\w-]+=(?:\"[^\"<>]*\"|'[^'<>]*'|\w+))*\s*/?>",
    re.I,
)
_BOXES = r"f?box|boxed|text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt)|mbox|emph|underline|boldsymbol"
BOXED = re.compile(rf"\\(?:{_BOXES})\s*\{{")  # begins what LaTeX sets in a box, or as text
_BRACE = re.compile(rf"{BOXED.pattern}|\\?[{{}}]")
_DELIMITER = re.compile(r"(?<!\\)\\[()\[\]]")
# whole runs of marks: not in snake_case, user__name, a*b, 2**3 or 2 * 3
_EMPHASIS = re.compile(r"(?<![^\W_])(?<![*_`])[*_`]++(?=\S)|(?<=[^\s*_`])[*_`]++(?![^\W_])")


def straight(text: str) -> str:
    """Return a text with straight quotes and apostrophes, and one form of hyphen, in place of other signs."""
    return text.translate(_STRAIGHT)


def unboxed(text: str) -> str:
    """Return a text without LaTeX's boxes, \\boxed{5} or \\text{ m}, and without \\( \\) and \\[ \\]: spaces are there.

    $ stays, since it may be that of an amount.
    """
    if "\\" not in text:
        return text
    parts, after = [], 0
    boxes: list[bool] = []  # of each brace that is open: whether it is a box's
    for brace in _BRACE.finditer(text):
        if brace[0] in (r"\{", r"\}"):
            continue
        if brace[0] != "}":
            boxes.append(brace[0] != "{")
        if boxes and (boxes.pop() if brace[0] == "}" else boxes[-1]):
            parts.append(text[after : brace.start()])
            after = brace.end()
    return _DELIMITER.sub(" ", " ".join([*parts, text[after:]]))


def closed(text: str, start: int) -> int:
    """Return where a brace that was opened before `start` is closed: the index after it; -1 if it is not."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += 0 if brace[0] in (r"\{", r"\}") else -1 if brace[0] == "}" else 1
        if not depth:
            return brace.end()
    return -1


def without_tags(text: str) -> str:
    """Return a text with a space for each tag of HTML, such as <b> or <a href="...">, and the letter for &amp;."""
    text = _TAG.sub(" ", text) if "<" in text else text
    return html.unescape(text) if "&" in text else text


def unmarked(text: str) -> str:
    """Return a text without tags of HTML and without Markdown's marks around words: *, _, and `."""
    return " ".join(_EMPHASIS.sub("", without_tags(text)).split())


def bare(text: str) -> str:
    """Return a text `unmarked` and without a final full stop: not that of U.S., and that of 3.5. too."""
    text = unmarked(text) or text
    rest = text.removesuffix(".")
    return rest if rest and ("." not in rest or _NUMBER.fullmatch(rest)) else text


def holds(text: str, words: str) -> bool:
    """Whether words are in a text, as whole words: "5 km" is not in "1.5 km", nor C in C++, but one is in a line of
    Chinese, which has no spaces.

    In Korean, particles may follow.
    """
    return bool(words) and re.search(whole(words), text) is not None


def whole(words: str) -> str:
    """Return the pattern of whole words, as in `holds`."""
    return _starts(words) + re.escape(words) + _ends(words)


def _starts(words: str) -> str:
    """Return what must not be before the words, as a pattern."""
    plain = "" if _AFTER_ANY.match(words) else rf"(?<!{SPACED})(?<!{SPACED}_)"
    plain = r"(?<!\w)" if re.match(f"[{_HANGUL}]", words) else plain
    number = r"(?<!\d[.,/])(?<!\W-)(?<!^-)" if _AMOUNT.match(words) else ""
    return plain + number + (r"(?<!\d )" if re.match(r"\d+/\d", words) else "")  # 1/2 is not in 1 1/2


def _ends(words: str) -> str:
    """Return what must not be after the words."""
    plain = "" if UNSPACED.match(words[-1]) else rf"(?!{SPACED})(?!_{SPACED})"
    if words[-1].isdigit():
        return plain + r"(?![.,/]\d)"
    return plain + (r"(?!\+\+|#)" if words[-1].isalpha() else "")
