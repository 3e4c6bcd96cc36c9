"""The contract of graders, what each takes for right, and functions of the user."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError, MachineError
from experiments.config import load_config
from experiments.data.files import LocalFile
from experiments.data.grader import Grader
from experiments.data.graders import GRADERS, Function, read_grader, write_grader
from experiments.data.items import Item, NewTask
from experiments.data.math_grader import Math
from experiments.data.tested import Measured
from tests.helpers.question_files import write

OPTIONS = {"options": ("Lyon", "Paris")}
HALVES = "assert half(4) == 2\nassert half(9) == 4"
RIGHT = "```python\ndef half(x):\n    return x // 2\n```"
# grader as in YAML; answer; columns of the row; replies that are right; replies that are wrong
CASES: dict[str, tuple[Any, str, dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "exact": ("exact", "Paris", {}, ("paris.", "It is in France.\nAnswer: Paris"), ("Paris it is", "")),
    "contains": ("contains", "New York", {}, ("In new\nyork, I think", "New York"), ("New Yorker", "York", "")),
    "regex": ({"regex": r"is {answer}\b"}, "a.b", {}, ("it is a.b",), ("it is axb", "a.b", "")),
    "group": ({"regex": r"#### (.+)"}, "1,007", {}, ("#### 3\n#### 1007",), ("#### 1007\n#### 3", "1007")),
    "numeric": (
        "numeric",
        "1,007.50",
        {},
        ("It is 1007.5.", "3 + 4 = 1.0075e3", "\N{MINUS SIGN}3, no: 1007.5"),
        ("1007.4", "-1007.5", "none", "1007.5 or 3", ""),
    ),
    "tolerance": ({"numeric": 0.1}, "-2", {}, ("-2.1", "-1.9"), ("-2.11", "2", "5-2")),
    "relative": ({"numeric": {"relative": 0.1}}, "200", {}, ("180", "220 km"), ("179",)),
    "math": ("math", "1/2", {}, ("So it is $\\frac{1}{2}$.", "0.5", "\\boxed{\\frac{2}{4}}"), ("1/3", "no idea", "")),
    "code": (
        {"code": {"allow": True, "seconds": 1}},
        "pass",
        {"tests": HALVES},
        (RIGHT, "half = lambda x: x // 2", "import math\ndef half(x): return math.floor(x / 2)"),
        ("half = lambda x: x / 2", "raise SystemExit(0)", "while True: pass", "open('x', 'w')", "not code", ""),
    ),
    "choice": ("choice", "Paris", OPTIONS, ("Paris",), ("Lyon", "")),
    "likelihood": ("likelihood", "Paris", {}, ("Paris",), ("Lyon", "")),
}
NAMES = {"group": "regex", "tolerance": "numeric", "relative": "numeric"}  # further cases of a grader

# the same answer in other spellings
SPELLED: dict[str, tuple[Any, str, dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "contained number": (
        "contains",
        "1,005",
        {},
        ("It is 1005 km.", "x=1005.0", "1\u202f005", "7-1005"),
        ("-1005", "1005.5", "21,005", "a1005", "1005th", ""),
    ),
    "math without $": (
        "math",
        r"2\sqrt{2}",
        {},
        (r"2\sqrt{2}", "Answer: 2\\sqrt{2}", "It is\n\\sqrt{8}", r"$\sqrt{8}$"),
        (r"\sqrt{2}", "2", ""),
    ),
    "contained in a line without spaces": (
        "contains",
        "-5",
        {},
        ("\u7b54\u6848\u662f-5\u4e2a", "**-5**", "_-5_"),
        ("\u7b54\u6848\u662f5", "\u7b54\u6848\u662f-15", "3\u6708-5\u6708"),
    ),
    "contained with marks": (
        "contains",
        "New York",
        {},
        ("**New** York", "<b>New York</b>", "_New York_"),
        ("new yorker",),
    ),
    "number after words without spaces": (
        "numeric",
        "-5",
        {},
        ("\u7b54\u6848\u662f-5", "\u7b54\u6848\u662f\u22125\u3002", "_-5_"),
        ("\u7b54\u6848\u662f5", "3\u6708-5\u6708"),
    ),
    "number with a unit": (
        "numeric",
        "40",
        {},
        ("40 m^2", "40 cm3", "40 m s^{-2}", r"$40\text{ cm}^2$", "40 km\u00b2"),
        ("2 m^40", "10^40", "2"),
    ),
    "number with spaces and a point": ("numeric", "1000000.5", {}, ("1 000 000.5",), ("1 000 000",)),
    "math after words without spaces": ("math", "-5", {}, ("\u7b54\u6848\u662f-5",), ("\u7b54\u6848\u662f5",)),
    "math of a factorial": ("math", "5!", {}, ("120", "$5!$", r"\boxed{5!}"), ("5", "The answer is 5!")),
    "math of an equation": ("math", "x = 1/2", {}, ("x = \\frac12, so it is", "0.5.", "$x=.5$"), ("x = 2", "x = -1/2")),
    "math of a list": ("math", "3,5", {}, ("It is 3, 5.", "x = 3 or x = 5", r"\{5, 3\}"), ("3.5", "3", "5")),
    "math of a number with a unit": ("math", "10 apples", {}, ("It is 10.", "10 pears"), ("11 apples", "1")),
    "math of a percentage": (
        "math",
        "25%",
        {},
        ("0.25", "1/4", "25", r"$25\%$", "25 percent"),
        ("2500%", "0.25%", "2.5"),
    ),
    "math of percent in words": ("math", r"50\text{ percent}", {}, ("It is 0.5.", "50%"), ("5", "5000%")),
    "math at the end of a sentence": (
        "math",
        "5/6",
        {},
        ("The answer is 5/6.", "It is $5/6.$", r"\boxed{5/6.}"),
        ("The answer is 5.", "5/7."),
    ),
    "numeric in a box": ("numeric", "0,25", {}, (r"$$\boxed{0,25}$$", r"\(0,25\)", ".25."), (r"\boxed{(0,25)}",)),
    "math of an amount": ("math", "5", {}, (r"Price: \$5", "It costs $5."), (r"Price: \$15",)),
    "groups that take turns": ({"regex": r"#### (.+)|boxed\{(.+?)\}"}, "5", {}, (r"\boxed{5}", "#### 5"), ("#### 4",)),
    "a group in worked answers": (
        {"regex": r"#### (.+)"},
        "48 + 24 = 72\n#### 72",
        {},
        ("48 + 24 = 72\n#### 72", "#### 72", "#### 1\nno:\n#### 72."),
        ("48 + 24 = 72\n#### 24", "72", "####", ""),
    ),
    "a group in marked answers": ({"regex": r"\(([A-D])\)"}, "(B)", {}, ("I think (B)", "(A)? No: (B)"), ("B", "(A)")),
    "a group around the answer": ({"regex": "is ({answer})"}, "what it is", {}, ("is what it is",), ("it is", "is it")),
    "a group that may be empty": ({"regex": r"(\d*)"}, "5", {}, ("5", "5 "), ("6",)),
    "math of small numbers": (
        "math",
        r"6.63 \times 10^{-34}",
        {},
        (r"$6.63 \times 10^{-34}$", "It is 6.63e-34", "6.63 \u00d7 10\u207b\u00b3\u2074"),
        (r"$1.6 \times 10^{-19}$", "1.6e-19", "0", r"6.64 \times 10^{-34}"),
    ),
    "math of a mixed number": (
        "math",
        "1 1/2",
        {},
        ("1.5", "It is 1 1/2.", r"$1\frac12$", "3/2", r"\boxed{1 1/2}", "It is 1\u00bd."),
        ("1/2", "1", "2 1/2"),
    ),
    "math of the last box": ("math", "5", {}, (r"\boxed{4}. But wait: \boxed{5}",), (r"\boxed{5}. No: \boxed{4}",)),
    "math in other signs": (
        "math",
        r"2\sqrt{2}+x^2",
        {},
        ("2\u221a2+x\u00b2", "x\u00b2 + 2\u221a(2)"),
        ("2\u221a3+x\u00b2",),
    ),
    "math in a base": (
        "math",
        "1010_2",
        {},
        ("1010_{2}", "$1010_2$", "1010", "12_{8}, so 1010_2"),
        ("1010_8", "$1010_{3}$"),
    ),
    "code that waits for input": (
        {"code": {"allow": True, "seconds": 1}},
        "pass",
        {"tests": HALVES},
        (
            f"{RIGHT}\nif __name__ == '__main__':\n    print(half(int(input())))",
            "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
            "half = lambda x: A(x).x // 2",
        ),
        ("if __name__ == '__main__':\n    half = lambda x: x // 2",),
    ),
    "tests of the main program": (
        {"code": {"allow": True, "seconds": 1}},
        "pass",
        {"tests": f"if __name__ == '__main__':\n    {HALVES}"},
        (RIGHT,),
        ("half = lambda x: x / 2", "pass"),
    ),
    "contained power": ("contains", "2**3", {}, ("It is 2**3.", "2**3", "**2**3**"), ("It is 23.", "2*3", "8")),
    "contained name": ("contains", "user__name", {}, ("filter on `user__name`",), ("filter on username", "user_name")),
    "contained sentence": ("contains", "Paris.", {}, ("It is Paris, I think", "paris", "Paris."), ("Parisian", "")),
    "contained number with a stop": ("contains", "3.", {}, ("3 apples", "It is 3."), ("3.5", "13")),
    "contained decimal with a stop": ("contains", "3.5.", {}, ("3.50 m",), ("3", "5")),
    "contained abbreviation": ("contains", "U.S.", {}, ("The U.S. won",), ("us", "U.S.S.R", "the U.S, I think")),
    "contained bold answer": ("contains", "**New** York", {}, ("In New York", "**New** York"), ("New Yorker",)),
    "contained dots": ("contains", "...", {}, ("a ... b",), ("a",)),
    "contained letters": ("contains", "caf\u00e9", {}, ("A cafe\u0301.", "**Caf\u00e9**"), ("cafe",)),
    "spelled number": (
        "numeric",
        "-1234",
        {},
        ("\u20131\u202f234", r"$-1{,}234$", "\uff0d1'234", "**-1,234**"),
        ("1\u202f234", "5\u20131234", "-234", "-1 234 567"),
    ),
}


def skip_without(name: str) -> None:
    if name.startswith("math"):
        pytest.importorskip("math_verify")


@pytest.mark.parametrize("answer", [r"\{1,2\}", "(1,2)", "x^2+1", "A", "yes", r"\text{A}", r"3\frac12", r"\$18.90"])
def test_a_reply_that_is_the_answer_is_right_as_mathematics_too(answer: str) -> None:
    skip_without("math")
    assert Math()(answer, {"answer": answer}) == 1.0


def task(grader: Grader, answer: str, values: dict[str, Any]) -> NewTask:
    made = Measured(source="any", grader=grader).graded(NewTask("t", (Item("q", answer, values),), print))
    assert isinstance(made, NewTask)
    return made


@pytest.mark.parametrize("case", SPELLED)
def test_spellings_of_an_answer(case: str) -> None:
    skip_without(case)
    plain, answer, values, right, wrong = SPELLED[case]
    made = task(read_grader(plain), answer, values)
    assert [reply for reply in right if not made.correct(reply, made.test[0])] == []
    assert [reply for reply in wrong if made.correct(reply, made.test[0])] == []


@pytest.mark.parametrize("case", CASES)
class TestContract:
    def test_right_and_wrong(self, case: str) -> None:
        skip_without(case)
        plain, answer, values, right, wrong = CASES[case]
        made = task(read_grader(plain), answer, values)
        assert made.grader
        assert made.form == "text"
        assert [reply for reply in right if not made.correct(reply, made.test[0])] == []
        assert [reply for reply in wrong if made.correct(reply, made.test[0])] == []
        assert not made.correct(None, made.test[0])

    def test_any_reply_has_a_verdict(self, case: str) -> None:
        skip_without(case)
        plain, answer, values, *_ = CASES[case]
        made = task(read_grader(plain), answer, values)
        for reply in ("\x00", "\ud800", "9" * 5000, "(" * 500, "1e999999", "\\frac{", "```", "{answer}", "\N{SNOWMAN}"):
            assert made.correct(reply, made.test[0]) is False

    def test_it_is_written_as_it_was_read(self, case: str) -> None:
        grader = read_grader(CASES[case][0])
        assert read_grader(write_grader(grader)) == grader == pickle.loads(pickle.dumps(grader))
        assert grader.digest() == read_grader(write_grader(grader)).digest()
        others = [read_grader(CASES[other][0]).digest() for other in CASES if other != case]
        assert len(grader.digest()) == 16
        assert grader.digest() not in others

    def test_every_grader_has_a_case(self, case: str) -> None:
        assert set(GRADERS) == {NAMES.get(name, name) for name in CASES}
        assert isinstance(read_grader(CASES[case][0]), GRADERS[NAMES.get(case, case)])


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ("exactly", r"unknown name 'exactly': did you mean 'exact'"),
        ({"regex": "("}, r"'\(' is no regular expression"),
        ("regex", r"pattern"),
        ({"numeric": -1}, r"greater than or equal to 0"),
        ({"exact": 3}, r"value"),
        ({"exact": {}, "math": {}}, r"give one name"),
        (3, r"give one name"),
    ],
)
def test_faults_in_yaml(plain: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LocalFile(path="a.jsonl", grader=plain)


@pytest.mark.parametrize(
    ("plain", "item", "said"),
    [
        ("numeric", Item("q", "2^10"), r"'2\^10' is not read as one number"),
        ("numeric", Item("q", "3 \u00d7 4"), r"is not read as one number"),
        ("code", Item("q", "a", {"tests": "pass"}), r"grader code: it runs the model's replies as code.*allow: true"),
        ("numeric", Item("q", "none"), r"grader numeric: the answer 'none' has no number"),
        ("none_such:f", Item("q", "a"), r"none_such cannot be imported from .*ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_used_is_said_at_the_start(plain: Any, item: Item, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Measured(source="any", grader=plain).graded(NewTask("t", (item,), print))


FUNCTIONS = """
import mine_too

def right(reply, entry):
    return reply == entry["answer"] + entry["metadata"]["unit"] + mine_too.END

def broken(reply, entry):
    return 1 / 0

def away(reply, entry):
    raise ConnectionError("no network")

def leaves(reply, entry):
    raise SystemExit(3)

def percent(reply, entry):
    return 50

def above(reply, entry):
    return 1.0000001

def below(reply, entry):
    return 0.9999999

def nothing(reply, entry):
    return float("nan")

def punishes(reply, entry):
    return 1 if reply == entry["answer"] else -1
"""


class TestFunction:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "mine.py").write_text(FUNCTIONS)
        (tmp_path / "mine_too.py").write_text("END = '!'")
        return tmp_path

    @pytest.mark.parametrize("name", ["mine", "mine.py"])
    def test_a_function_next_to_the_config(self, name: str, folder: Path) -> None:
        rows = [{"question": "q", "answer": "3", "unit": "km"}]
        file = write(folder / "a.jsonl", rows)
        new = {"source": "file", "path": str(file), "grader": {f"{name}:right": {"columns": ["unit"]}}}
        arms = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]
        (folder / "run.yaml").write_text(json.dumps({"name": "run", "data": {"new": new}, "arms": arms}))
        source = load_config(folder / "run.yaml").data.new[0]
        made = source.sample(1, 0)  # type: ignore[attr-defined]
        assert made.correct("3km!", made.test[0])
        assert not made.correct("3", made.test[0])

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("broken", "ZeroDivisionError: division"),
            ("leaves", "SystemExit: 3"),
            ("nothing", "ValueError: it gave nan"),
        ],
    )
    def test_an_error_is_a_wrong_answer_and_is_named(self, name: str, said: str, folder: Path) -> None:
        made = task(Function(function=f"{folder / 'mine.py'}:{name}"), "3", {})
        with pytest.warns(UserWarning, match=rf"grader .*mine.py:{name}: {said}.* \(the reply counts as wrong\)"):
            assert not made.correct("3", made.test[0])

    @pytest.mark.filterwarnings("error")
    def test_a_number_below_0_is_wrong_too(self, folder: Path) -> None:
        made = task(Function(function=f"{folder / 'mine'}:punishes"), "3", {})
        assert [made.correct(reply, made.test[0]) for reply in ("3", "4")] == [True, False]

    def test_a_scale_that_goes_on_above_1_is_refused_and_rounding_is_not(self, folder: Path) -> None:
        made = task(Function(function=f"{folder / 'mine'}:percent"), "3", {})
        with pytest.raises(ConfigError, match=r"mine:percent: it gave 50: give true, false, or a number up to 1"):
            made.correct("3", made.test[0])
        for name in ("above", "below"):
            made = task(Function(function=f"{folder / 'mine'}:{name}"), "3", {})
            assert made.correct("3", made.test[0])

    def test_a_fault_of_the_machine_is_no_wrong_answer(self, folder: Path) -> None:
        made = task(Function(function=f"{folder / 'mine'}:away"), "3", {})
        with pytest.raises(MachineError, match=r"no network"):
            made.correct("3", made.test[0])

    def test_words_of_a_reply_are_no_fault_of_the_machine(self, tmp_path: Path) -> None:
        """Python's errors repeat what they could not read: a model that writes of a full disk would end each run."""
        (tmp_path / "mine.py").write_text("def read(reply, entry):\n    return float(reply)\n")
        made = task(Function(function=f"{tmp_path / 'mine'}:read"), "3", {})
        with pytest.warns(UserWarning, match=r"could not convert string to float.*counts as wrong"):
            assert not made.correct("No space left on device", made.test[0])

    def test_what_it_changes_in_an_entry_is_its_own(self, tmp_path: Path) -> None:
        """The base would be graded by the answers of the data, an arm by what is left of them."""
        (tmp_path / "mine.py").write_text(
            "def one(reply, entry):\n    return reply in entry['metadata']['names'].pop()\n"
        )
        made = task(Function(function=f"{tmp_path / 'mine'}:one", columns=("names",)), "3", {"names": [["3"]]})
        assert [made.correct("3", made.test[0]) for _ in range(2)] == [True, True]

    def test_a_function_of_other_arguments_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text("def one(reply):\n    pass\n\ndef more(*given):\n    return True\n")
        with pytest.raises(ConfigError, match=r"mine:one: it is called with a reply and an entry: too many positional"):
            task(Function(function=f"{tmp_path / 'mine'}:one"), "3", {})
        assert task(Function(function=f"{tmp_path / 'mine'}:more"), "3", {})

    def test_a_name_that_is_not_there(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match=r"has no function 'rihgt': did you mean 'right'"):
            task(Function(function=f"{folder / 'mine'}:rihgt"), "3", {})

    def test_the_digest_follows_the_file(self, folder: Path) -> None:
        grader = Function(function=f"{folder / 'mine'}:right")
        before = grader.digest()
        (folder / "mine.py").write_text(FUNCTIONS + "\n")
        assert grader.digest() != before
