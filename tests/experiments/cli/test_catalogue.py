"""`list` has a line of its own on every entry of every table."""

from __future__ import annotations

import pytest

from experiments.cli import main as cli
from experiments.cli.catalogue import FILE, FILES, KINDS, TABLES, described, described_tables, entries, first_sentence
from experiments.common.errors import ConfigError
from experiments.common.files import read_json


def test_the_file_of_lines_is_up_to_date() -> None:
    assert read_json(FILE) == described_tables(), "run `python -m docs.generate`"
    assert list(KINDS) == [*FILES, *TABLES]


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_has_its_own_line(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = entries(kind)
    assert len(found) > 1
    assert all(found.values())
    assert cli.main(["list", kind]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == f"{kind} ({KINDS[kind]})"
    assert [line.strip().partition("  ")[0] for line in lines] == list(found)
    assert [line.partition("  ")[2].partition("  ")[2].strip() for line in lines] == list(found.values())


@pytest.mark.parametrize("kind", ["configs", "methods", "sources", "suites", "structures", "interpolations"])
def test_no_two_entries_are_described_alike(kind: str) -> None:
    texts = list(entries(kind).values())
    assert len(set(texts)) == len(texts)


def test_what_is_listed_can_be_named() -> None:
    from ctrl import ControlConfig
    from experiments.config import load_config
    from experiments.methods import METHODS
    from experiments.studies.load import load_study

    for name in entries("configs"):
        assert load_config(name).name == name
    for name in entries("studies"):
        assert load_study(name).name == name
    assert set(entries("methods")) == set(METHODS)
    for name in entries("structures"):
        assert ControlConfig(structure=name).structure == name


def test_all_kinds_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    assert [said.index(f"{kind} ({where})") for kind, where in KINDS.items()] == sorted(
        said.index(f"{kind} ({where})") for kind, where in KINDS.items()
    )
    assert "\x1b" not in said


def test_an_unknown_kind_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "interpolation"]) == ConfigError.exit_code
    assert "unknown kind 'interpolation': did you mean 'interpolations'? known: configs, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("All weights. With `replay` it is another.", "All weights."),
        ("A line\n    goes on (arXiv 2401.02415): x. The next.\n\n    Rest.", "A line goes on (arXiv 2401.02415): x."),
        ("W + 0.5 * B, for example .5. `x` is.", "W + 0.5 * B, for example .5."),
        ("Does it? Yes.", "Does it?"),
        ("No end", "No end"),
        (None, ""),
    ],
)  # fmt: skip
def test_first_sentence(text: str | None, sentence: str) -> None:
    assert first_sentence(text) == sentence


def test_a_meaning_comes_before_a_docstring() -> None:
    class Entry:
        """Class."""

        meaning = "share of answers. More."

    assert described({"a": Entry}) == {"a": "share of answers."}
