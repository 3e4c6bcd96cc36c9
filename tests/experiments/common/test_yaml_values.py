"""Plain values of YAML: numbers, files by path or name, and one field set by its key."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.common.errors import ConfigError
from experiments.common.yaml_values import dump_yaml, load_yaml, read_yaml, set_field


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("-2E+1", -20.0), ("1.0e-3", 1e-3), ("'1e-3'", "1e-3")])
def test_numbers_as_in_python(text: str, value: Any) -> None:
    assert load_yaml(text) == value


ODD = [
    "1e-3", "-2E+1", "1.5e3", "1_0e2", "1", "1.0", "0x1f", "010", "1:30", "yes", "Off", "null", "~", "", " ", "true",
    ".inf", "2026-01-01", "=", "<<", "- a", "a: b", "# c", "é ü 好", "a\nb\n", "\ttab", "\u2028", "'", '"', "{}", "[1]",
    "!!int 3", "&a",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_a_text_is_read_as_it_was_written(text: str) -> None:
    values = {"name": text, text: 1, "list": [text, {"x": text}]}
    assert load_yaml(dump_yaml(values)) == load_yaml(dump_yaml(values, short=True)) == values


def test_one_module_writes_yaml() -> None:
    """PyYAML's own functions write the text 1e-3 bare: whoever copies it from a report gets a number."""
    package = Path(__file__).parents[3] / "experiments"
    writes = [file.name for file in package.rglob("*.py") if re.search(r"yaml\.(safe_)?dump", file.read_text())]
    assert writes == ["yaml_values.py"]


def test_plain_values_are_read_as_they_were_written() -> None:
    numbers = [1e-3, 1e-05, 1e22, -0.0, 3, 10**30, True, None, math.inf, [], {}, 0.1 + 0.2]
    assert load_yaml(dump_yaml({"numbers": numbers})) == {"numbers": numbers}


def test_a_list_at_two_places_is_written_twice() -> None:
    rates, part = [0.001], {"layers": 8}
    text = dump_yaml([{"rates": rates, "control": part}, {"rates": rates, "control": part}], short=True)
    assert text == 2 * "- rates: [0.001]\n  control: {layers: 8}\n"


def test_a_file_by_path_or_by_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped"
    (shipped / "more").mkdir(parents=True)
    (shipped / "a.yaml").write_text("x: 1")
    (shipped / "more" / "b.yaml").write_text("x: 2")
    monkeypatch.chdir(tmp_path)
    assert read_yaml("a", shipped, "config") == (shipped / "a.yaml", {"x": 1})
    assert read_yaml("more/b", shipped, "config")[1] == {"x": 2}
    (tmp_path / "a").write_text("x: 3")
    assert read_yaml("a", shipped, "config")[1] == {"x": 3}  # a file of that path comes first
    with pytest.raises(ConfigError, match="no config c: give a path, or a shipped name: a, more/b"):
        read_yaml("c", shipped, "config")


def test_set_field() -> None:
    values: dict[str, Any] = {"arms": [{"name": "x"}], "training": {"steps": 1}}
    set_field(values, "arms.0.name", "y")
    set_field(values, "training.steps", 2)
    set_field(values, "data.old.source", "self")
    assert values == {"arms": [{"name": "y"}], "training": {"steps": 2}, "data": {"old": {"source": "self"}}}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("arms.1.name", r"cannot set 'arms\.1\.name': '1' is no index into a list of 1 entries"),
        ("arms.x", "'x' is no index into a list of 1 entries"),
        ("name.x.y", "'name' is not a section"),
    ],
)
def test_a_field_that_cannot_be_set(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        set_field({"name": "n", "arms": [{}]}, key, 1)


TWICE = {
    "a section": (
        "training: {steps: 4}\nname: x\ntraining: {steps: 2}\n",
        "'training' is in line 1 and again in line 3",
    ),
    "a field": ("training:\n  steps: 4\n  batch_size: 2\n  steps: 2\n", "'steps' is in line 2 and again in line 4"),
    "in a list": ("arms:\n  - name: a\n    name: b\n", "'name' is in line 2 and again in line 3"),
    "on one line": ("x: {a: 1, a: 1}", "'a' is in line 1 and again in line 1"),
    "with quotes": ("a: 1\n'a': 2\n", "'a' is in line 1 and again in line 2"),
}


@pytest.mark.parametrize("kind", TWICE)
def test_a_key_that_is_there_twice(kind: str, tmp_path: Path) -> None:
    text, said = TWICE[kind]
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"a\.yaml is not YAML: the key {said}: keep one"):
        read_yaml(tmp_path / "a.yaml", tmp_path, "config")


def test_merged_keys_may_be_there_twice() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\nd: {<<: [*a, *b]}\n"
    assert load_yaml(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 3, "y": 4},
        "d": {"x": 1, "y": 2},
    }


def test_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_yaml(tmp_path / "a.yaml", tmp_path, "config")[1] == {"name": "x"}


@pytest.mark.parametrize("text", ['a: "\\ud83d"', "a: " + "[" * 1000, "a: " + "9" * 5000])
def test_what_python_cannot_hold_is_no_yaml(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"half of a character|recursion|digits"):
        load_yaml(text)


@pytest.mark.parametrize(
    ("text", "means"), [("010", "8"), ("-017", "-15"), ("1:30", "90"), ("1:30:00", "5400"), ("1:30.5", "90.5")]
)
def test_a_number_that_yaml_counts_in_another_way_is_refused(text: str, means: str) -> None:
    with pytest.raises(yaml.YAMLError, match=rf"line 2: {text} is {means} in YAML, which counts by 8 .* by 60"):
        load_yaml(f"a: 1\nsteps: {text}\n")
    assert load_yaml(f"a: '{text}'") == {"a": text}
    assert load_yaml(dump_yaml({"a": text})) == {"a": text}


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("10", 10), ("0.10", 0.1), ("1_000", 1000), ("0x10", 16), ("08", "08")]
)
def test_other_numbers_are_read(text: str, value: object) -> None:
    assert load_yaml(f"a: {text}") == {"a": value}
