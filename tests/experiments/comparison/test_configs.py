"""What a run's config says of its arms, and what may not be missing from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli.main import main
from experiments.common.errors import CompareError, ConfigError
from experiments.common.files import write_json, write_text
from experiments.common.owner import CONFIG, SOURCES
from experiments.common.yaml_values import dump_yaml
from experiments.comparison.compare import compare
from experiments.comparison.configs import read_stages
from experiments.comparison.inputs import read_runs
from experiments.config import parse_config
from experiments.records import ArmResult, Estimate
from tests.helpers.planted_run import ARMS, write_run
from tests.helpers.stream_answers import ENDS, NEW
from tests.helpers.stream_answers import config as stream_config


def test_the_stages_of_a_stream_are_those_that_it_ran_with(tmp_path: Path) -> None:
    """Tasks that are swapped in config.yaml would swap their figures."""
    config, swapped = stream_config(), stream_config(data={"new": NEW[::-1], "order": "sequential"})
    write_json(tmp_path / SOURCES, {CONFIG: config.digest()})
    write_text(tmp_path / "config.yaml", dump_yaml(config.to_dict()))
    assert list(read_stages(tmp_path).values()) == list(ENDS)
    write_text(tmp_path / "config.yaml", dump_yaml(swapped.to_dict()))
    with pytest.raises(ConfigError, match=r"config\.yaml was edited: it has other settings than .* ran with"):
        read_stages(tmp_path)
    write_text(tmp_path / "config.yaml", "data: {order: sequential, of_another_version: 1}")
    assert read_stages(tmp_path) == {}


def test_replies_that_are_graded_in_several_ways_are_said(tmp_path: Path) -> None:
    """If the base is wrong by each grader, its answers are the same, and gains were compared without a word."""
    folders = [write_run(tmp_path / name, ARMS, n=40) for name in ("one", "other", "default")]
    for folder, grader in zip(folders, ("exact", "contains", None), strict=True):
        source = {"source": "file", "path": "a.jsonl", **({"grader": grader} if grader else {})}
        write_text(folder / "config.yaml", dump_yaml({"data": {"new": [source]}}))

    def said(*sources: Path) -> list[str]:
        notes = compare(read_runs([f"{folder}:full-0.001" for folder in sources]), draws=100).notes
        return [note for note in notes if "graded in several ways, so gains do not compare" in note]

    (note,) = said(*folders[:2])
    assert note.endswith('one:full-0.001 by "exact", other:full-0.001 by "contains"')
    assert said(folders[0], folders[2]) == []


def test_replies_that_are_graded_or_cut_in_several_ways_are_said_by_task(tmp_path: Path) -> None:
    """A base that has none right has the same answers with each. An export is of the same arms."""
    folders = [write_run(tmp_path / name, ARMS, n=40) for name in ("one", "other", "older")]
    for folder, most, grader in zip(folders, (26, 5), "ab", strict=False):
        graded = {"kept": {"facts0": grader, "facts1": "a"}, "new": {"sums": grader}}
        room = {"new": {"sums": most, "not common": most}}
        write_json(folder / "base" / "timing.json", {"room": room, "graded": graded})

    def export(folder: Path) -> str:
        result = ArmResult("full", "full", 0.001, "finished", scorecard={"gain": Estimate(0.4)}).to_dict()
        file = folder.with_suffix(".json")
        write_json(file, {"trials": [{"number": 0, "runs": [{"seed": 0, "folder": str(folder), "result": result}]}]})
        return str(file)

    def said(*sources: str) -> list[str]:
        notes = compare(read_runs(sources), draws=100).notes
        return [note for note in notes if "so they do not compare" in note]

    one, other, older = (f"{folder}:full-0.001" for folder in folders)
    why = "are graded in several ways, so they do not compare (another grader, or another version of its code)"
    assert said(one, other, older) == [
        f"replies to kept task facts0 {why}: one:full-0.001; other:full-0.001",
        f"replies to new task sums {why}: one:full-0.001; other:full-0.001",
        "replies to new task sums are cut at several numbers of tokens, so they do not compare: one:full-0.001 at 26, "
        "other:full-0.001 at 5",
    ]
    assert said(one, older) == []
    assert len(said(export(folders[0]), export(folders[1]))) == len(said(one, export(folders[1]))) == 3


def test_a_gate_does_not_pass_without_the_names_of_all_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An arm that has not begun has no folder: the config alone knows of it."""
    folder = write_run(tmp_path / "run", {"a-0.001": (0.0, 0.4)})
    arms = [{"name": name, "method": "full", "learning_rates": [1e-3]} for name in ("a", "b")]
    config = parse_config({"name": "run", "arms": arms})
    text = dump_yaml(config.to_dict())
    write_json(folder / SOURCES, {CONFIG: config.digest()})
    gate = ["gate", str(folder), "--margin", "0.5"]
    cuts = [text[: text.index("arms:")], text[: text.rindex("- name: b")], text[:40], "", None]
    for content in (text, *cuts):
        write_text(folder / "config.yaml", content or "")
        if content is None:
            (folder / "config.yaml").unlink()
        assert main(gate) == (1 if content == text else 2), content
        said = capsys.readouterr()
        words = ("FAIL  b-0.001: it has not begun",) if content == text else ("is damaged", "is gone", "was edited")
        assert any(word in said.out + said.err for word in words), said
    write_json(folder / SOURCES, {})  # of an earlier version
    assert main(gate) == 0
    write_text(folder / "measure.json", "{")
    with pytest.raises(CompareError, match=r"measure\.json is damaged .* since it names the arms"):
        read_runs([str(folder)])
    (folder / "measure.json").unlink()
    write_json(folder / "arms" / "a-0.001" / "model.json", {})  # only a measurement writes one
    with pytest.raises(CompareError, match=r"measure\.json is gone: bring it back"):
        read_runs([str(folder)])
