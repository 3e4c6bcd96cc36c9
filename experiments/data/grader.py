"""The contract of a grader: what decides whether a reply to a question is right. The simple ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, ClassVar

from pydantic import Field

from experiments.common.errors import ConfigError
from experiments.common.files import parse_json
from experiments.common.hashing import short_digest
from experiments.common.section import Section
from experiments.data.cells import written
from experiments.data.items import Item, Scorer
from experiments.data.matching import FRACTION, exact_match, normal, same
from experiments.data.numerals import NUMBER, WHOLE, in_one_spelling, last_number, tidy
from experiments.data.spelling import SPACED, bare, holds, straight, unmarked, without_tags
from experiments.data.versions import other_versions

NUMBERS = re.compile(rf"(?<!{SPACED})(?<!{SPACED}_)(?:{NUMBER.pattern})(?!{SPACED})(?!_{SPACED})")  # not inside a word
DATED = re.compile(r"\d+(?:\s?[-:/]\s?\d+)+")  # a date, a time or a range; a fraction too
SEVERAL = re.compile(r"[-+]?\d[\d\s.,]*")  # digits and separators, maybe of several numbers
PRODUCT = re.compile(r"\d\s?(?:\^|\*\*?|\u00d7|\\times|\\cdot)\s?\{?[-+]?\d[\d.^{}-]*\W*")  # 10^3, 3 * 10^2
SCALE = re.compile(r"\d\s?(?:[km](?!\w)|bn\b|thousand|million|billion|trillion|lakh|crore|[\u4e07\u5104\u4ebf])", re.I)
READ, BOTH, NUMBER_ONLY = "read", "option or number", "number"  # in the values of an item: how its answer can be read
WORD = re.compile("[aiAI]")  # an option, or a word of any sentence
SHOWN = 60  # characters of an answer in a remark


class Grader(Section):
    """Base of all graders. A grader is a name in the YAML, or {name: its fields}.

    It is called as a verifier is: (reply, entry) -> score; 1 is right, and an exception wrong. entry: question, answer
    and metadata of the item. main: the field that `{name: value}` sets. by_choice: no reply is written; the model
    chooses the likeliest option. by_likelihood: no reply is written; that of the data is scored. version: raise it when
    a change of the code changes grades of this grader alone (else `replies.GRADING`), so that none are mixed.
    """

    version: ClassVar[int] = 1
    main: ClassVar[str | None] = None
    by_choice: ClassVar[bool] = False
    by_likelihood: ClassVar[bool] = False

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that are read besides question and answer."""
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Packages whose version may decide a grade, see `versions`."""
        return ()

    def values(self, row: Mapping[str, Any], answer: str, cell: Any) -> tuple[str, dict[str, Any]]:
        """Return the answer to learn, and the metadata of the item. cell: of the answer. Raises ValueError."""
        return answer, {name: row[name] for name in self.reads}

    def check(self, items: Sequence[Item]) -> None:
        """Raise ConfigError if the grader cannot be used here, or not for these items."""

    def remarks(self, items: Sequence[Item]) -> list[str]:
        """Say how answers are read that may be meant otherwise, one line each."""
        return []

    def ready(self) -> None:
        """Import what a check needs, before a process gives up its rights."""

    def scorer(self) -> Scorer:
        """Return the function that grades replies."""
        return self

    def __call__(self, reply: str, entry: Mapping[str, Any]) -> float:
        raise NotImplementedError

    def digest(self) -> str:
        """Return sixteen hex digits that change whenever a grade could."""
        version = [f"version {self.version}"] if self.version > 1 else []
        return short_digest(type(self).__name__, self.model_dump_json(), *version, *other_versions(*self.needs))


class Exact(Grader):
    """The reply, or its last line, is the answer.

    Case, the number of spaces between words, commas between thousands, punctuation after it, and marks around it do
    not count: bold, italics, quotes, backticks and LaTeX's dollars, brackets and boxes. Quotes and backticks of the
    answer do. An answer that is a number may be said as a fraction, and (B), B) and B. are the letter B. Other spaces
    and brackets count: [1, 2] is not [1,2].
    """

    def __call__(self, reply: str, entry: Mapping[str, Any]) -> float:
        return exact_match(reply, entry)


class Contains(Grader):
    """The answer is somewhere in the reply, as whole words, in any case; a number as one of the reply's numbers.

    A final full stop of the answer, marks of bold type or italics, and tags of HTML around words do not count. In
    scripts without spaces between words (Chinese, Japanese, Thai), the answer may be anywhere. The answers A and I are
    also in "a fraction" and "I think"; a run says so.
    """

    version = 2  # a final full stop, and marks of the answer

    def remarks(self, items: Sequence[Item]) -> list[str]:
        found = [item.answer for item in items if WORD.fullmatch(bare(item.answer))]
        said = f"{len(found):,} of {len(items):,} answers are also words of English, such as"
        return [f'{said} {found[0]!r}: "a fraction" or "I think" has it too; choose exact or regex'] if found else []

    def __call__(self, reply: str, entry: Mapping[str, Any]) -> float:
        reply, answer = (" ".join(straight(tidy(one)).casefold().split()) for one in (reply, str(entry["answer"])))
        plain = bare(answer)
        number = in_one_spelling(plain).strip()
        if WHOLE.fullmatch(number) or FRACTION.fullmatch(number):
            wanted, said = normal(number), set(NUMBERS.findall(in_one_spelling(reply)))
            found = any(same(normal(one), wanted) for one in said)
            if found or WHOLE.fullmatch(plain):
                return float(found)
        shown = reply if "<" in answer or "&" in answer else without_tags(reply)
        return float(any(holds(text, words) for text in (shown, unmarked(reply)) for words in (answer, plain)))


class Numeric(Grader):
    """The last number of the reply is that of the answer: |x - y| <= max(tolerance, relative |y|).

    A number is 1234, 1,234.5, 1/2, 1 1/2, 1½, LaTeX's \\frac{1}{2} or 1e3, in the digits of any script; apostrophes
    and spaces may be between thousands too, and 1.234,5, 1.234.567 and 3,5 are read as many countries write them, but
    for lists: (3,5), [3,5] and [1 234]. Ambiguous are 1,234, read as a thousand, and 1.234, read as one and a bit. Of
    25% and 25 km the 25 is read. 3 × 10^8 is read too; other powers, such as 2^10, are not: for these write a
    function of your own. Powers of units (m^2) are no numbers, but the digits of CO2 are, and "minus 5" in words is
    5. An answer in the data that may be several numbers, such as 1, 2, is refused, and so is one that ends with a
    product or a power.
    """

    main = "tolerance"
    tolerance: float = Field(0.0, ge=0, description="largest difference")
    relative: float = Field(0.0, ge=0, description="largest difference as a share of the answer")

    def check(self, items: Sequence[Item]) -> None:
        for item in items:
            if last_number(item.answer) is None:
                raise refused("numeric", f"the answer {item.answer!r} has no number: choose another grader")
            text = in_one_spelling(item.answer).strip().rstrip(".")
            dated = DATED.fullmatch(text) and not FRACTION.fullmatch(text)
            product = any(found.end() == len(text) for found in PRODUCT.finditer(text))
            if dated or product or (SEVERAL.fullmatch(text) and not WHOLE.fullmatch(text)):
                raise refused(
                    "numeric", f"the answer {item.answer!r} is not read as one number: write 1234.5 or 1,234.5"
                )

    def remarks(self, items: Sequence[Item]) -> list[str]:
        answers = [item.answer for item in items]
        several = [one for one in answers if len(NUMBER.findall(in_one_spelling(one))) > 1]
        scaled = [one for one in answers if SCALE.search(one) and one not in several]
        return [
            f"{len(found):,} of {len(answers):,} answers {what}, such as {shortened(found[0])!r}: read as "
            f"{last_number(found[0]):f}"
            for found, what in (
                (several, "hold several numbers"),
                (scaled, "have a word or sign for thousands after the number"),
            )
            if found
        ]

    def __call__(self, reply: str, entry: Mapping[str, Any]) -> float:
        said, wanted = last_number(reply), last_number(str(entry["answer"]))
        if said is None or wanted is None:
            return 0.0
        allowed = max(Decimal(str(self.tolerance)), Decimal(str(self.relative)) * abs(wanted))
        return float(abs(said - wanted) <= allowed)


class Choice(Grader):
    """No reply is written: the option with the highest mean log-probability per token is the answer.

    The options are a column with a list, or with {text: [...], label: [...]}. The answer is a label, if there are any,
    an option, its letter (A is the first) or its number from 0 (but not next to labels that are numbers).
    """

    main = "options"
    by_choice = True
    options: str = Field("options", description="column with the list of options")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.options,)

    def values(self, row: Mapping[str, Any], answer: str, cell: Any) -> tuple[str, dict[str, Any]]:
        options, index = chosen(row[self.options], answer, cell)
        return options[index], {"options": options, **_unclear(row[self.options], options, answer.strip(), cell)}

    def check(self, items: Sequence[Item]) -> None:
        both = [item for item in items if item.metadata.get(READ) == BOTH]
        if both and (numbers := [item for item in items if item.metadata.get(READ) == NUMBER_ONLY]):
            raise refused(
                "choice",
                f"the answer {both[0].answer!r} to {both[0].question[:60]!r} is an option and the number of another, "
                f"and that to {numbers[0].question[:60]!r} can only be a number: write letters (A is the first), or "
                "the options themselves",
            )

    def remarks(self, items: Sequence[Item]) -> list[str]:
        both = [item for item in items if item.metadata.get(READ) == BOTH]
        if not both or len(both) < len(items):
            return []  # some answers are options and can be nothing else
        return [
            f"each answer is an option, and also the number of another, such as {both[0].answer!r} of "
            f"{list(both[0].metadata['options'])}: read as the option. For numbers from 0 write letters (A, B)"
        ]

    def __call__(self, reply: str, entry: Mapping[str, Any]) -> float:
        return exact_match(reply, entry)


class Likelihood(Grader):
    """No reply is written: the figure is the likelihood of the data's own reply, in nats per token, with its end.

    For conversations and other free answers, which are rarely equal word by word.
    """

    by_likelihood = True

    def __call__(self, reply: str, entry: Mapping[str, Any]) -> float:
        return exact_match(reply, entry)


def chosen(cell: Any, answer: str, raw: Any) -> tuple[tuple[str, ...], int]:
    """Return the options of a cell and the index of the answer. raw: cell of the answer. Raises ValueError."""
    cell = _parsed(cell) if isinstance(cell, str) else cell
    texts = cell.get("text") if isinstance(cell, Mapping) else cell
    labels = [written(label) for label in cell.get("label", ())] if isinstance(cell, Mapping) else []
    if not isinstance(texts, list | tuple) or not all(isinstance(one, str | int | float) for one in texts):
        raise ValueError("the options must be a list of texts")
    options = tuple(written(one).strip() for one in texts)
    if len(options) < 2 or len(set(options)) < len(options) or not all(options):
        raise ValueError(f"two or more different options are needed, but got {list(options)}")
    numbered = type(raw) is int and not any(type(one) in (int, float) for one in texts)  # 1 of ["3", "4"] is the second
    names = [labels] if numbered else [labels, options]  # label 3 of 3, 4, 5 is the last, as in ARC
    letters, numbers = [chr(ord("A") + i) for i in range(len(options))], [str(i) for i in range(len(options))]
    numbers = [] if labels and all(map(str.isdigit, labels)) else numbers  # 0 is none of the labels 1, 2, 3
    for known in (*names, letters, numbers):
        if answer.strip() in known:
            return options, known.index(answer.strip())
    raise ValueError(f"the answer {answer!r} is none of the options {list(options)}, nor a letter or number of one")


def _unclear(cell: Any, options: Sequence[str], answer: str, raw: Any) -> dict[str, str]:
    """Say of an answer that is digits in a text, as all cells of CSV are, whether it is an option or a number, or both.

    So is 1.0, which is an option 1, or the number 1 in a column with empty cells. Nothing if it is an option and can be
    no number of another.
    """
    labels = isinstance(_parsed(cell) if isinstance(cell, str) else cell, Mapping)
    if labels or not isinstance(raw, str | float) or not answer.isdecimal() or int(answer) >= len(options):
        return {}
    if answer not in options:
        return {READ: NUMBER_ONLY}
    return {READ: BOTH} if options[int(answer)] != answer else {}


def shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"... {text[-SHOWN:]}"


def _parsed(cell: str) -> Any:
    """Read a list that is written as JSON, as a cell of a CSV file has it."""
    try:
        return parse_json(cell)
    except ValueError:
        return cell


def refused(name: str, why: str) -> ConfigError:
    return ConfigError(f"grader {name}: {why}")
