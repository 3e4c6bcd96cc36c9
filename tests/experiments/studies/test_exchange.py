"""Trials leave a machine in one file, and a study begins from it: nothing that was run is run again."""

from __future__ import annotations

import io
import json
import lzma
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError, DamagedError
from experiments.common.files import _suffix
from experiments.common.yaml_values import dump_yaml
from experiments.records import ArmResult, Estimate
from experiments.runs.result_file import read_result, write_result
from experiments.studies import exchange
from experiments.studies.archive import FILE, TRIALS
from experiments.studies.exchange import read_trials, unpack_runs, unpacked, write_trials
from experiments.studies.queue import Store
from experiments.studies.report.write import _at_once
from experiments.studies.trial_results import TrialOutcome
from tests.helpers.toy_study import open_store, value


def quiet(text: str) -> None: ...


def run_in(store: Store, root: Path, begun: list[int], constraint: float | None = None) -> Any:
    def run(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        begun.append(number)
        config = store.config.run_config(picks, number, 0)
        name = f"runs/{config.name}-{config.digest()}"
        arm = root / name / "arms" / "arm-0.001"
        for path, text in ((arm / "items-4.jsonl", f"{number}"), (root / name / "base" / "items.jsonl", "base")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (arm / "trained").mkdir()
        (arm / "trained" / "weights").write_text("large")
        (root / name / "config.yaml").write_text(dump_yaml(config.to_dict()))
        result = ArmResult("arm", "full", 1e-3, "finished", steps=4, scorecard={"gain": Estimate(value(picks))})
        write_result(arm, result)
        limits = {} if constraint is None else {"kl <= 1": constraint}
        return TrialOutcome([value(picks)], limits, [{"seed": 0, "folder": name, "result": result.to_dict()}])

    return run


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path, Path]:
    """A study of six trials with four of them complete, its root, and the folder of its file."""
    folder = tmp_path_factory.mktemp("first")
    root, out, begun = folder / "one", folder / "out", list[int]()
    root.mkdir()
    out.mkdir()
    store = open_store(root)
    run = run_in(store, root, begun, 0.5)

    def four(number: int, picks: dict[str, Any], report: Any) -> TrialOutcome:
        if number == 4:
            raise KeyboardInterrupt
        return run(number, picks, report)

    with pytest.raises(KeyboardInterrupt):
        store.work(four, quiet)
    assert write_trials(store.config, store.trials(), root, out) == out / FILE
    return store, root, out


@pytest.fixture
def written(first: tuple[Store, Path, Path], tmp_path: Path) -> tuple[Store, Path, Path]:
    """The same with a folder that a test may change."""
    store, root, out = first
    (tmp_path / "out").mkdir()
    shutil.copy(out / FILE, tmp_path / "out")
    return store, root, tmp_path / "out"


def test_a_study_goes_on_where_another_machine_stopped(written: tuple[Store, Path, Path], tmp_path: Path) -> None:
    first, root, out = written
    there, begun = tmp_path / "two", list[int]()
    there.mkdir()
    store = Store(f"sqlite:///{there / 'optuna.db'}", first.config)
    unpack_runs(out, there)
    attempts = read_trials(store.config, out)
    assert store.begin(attempts) == 4
    assert store.begin(attempts) == 0, "nothing is added twice"
    assert _at_once(store) == 1, "nobody here knows when they ran"
    before = {trial.number: trial for trial in first.trials() if trial.state == "complete"}
    taken = {trial.number: trial for trial in store.trials() if trial.state == "complete"}
    for number, trial in before.items():
        assert taken[number].picks == trial.picks
        assert (taken[number].values, taken[number].constraints) == (trial.values, {"kl <= 1": 0.5})
        assert (taken[number].runs, taken[number].feasible) == (trial.runs, False)
        assert taken[number].seconds == pytest.approx(trial.seconds)
    assert store.work(run_in(store, there, begun), quiet) == "all 6 cells of the grid are finished"
    assert len(begun) == 2
    assert [trial.state for trial in store.trials()] == ["complete"] * 6
    files = {
        path.relative_to(root) for path in root.glob("runs/*/**/*") if path.is_file() and path.parent.name != "trained"
    }
    found = {path.relative_to(there) for path in there.glob("runs/*/**/*") if path.is_file()}
    assert files <= found
    assert all((there / path).read_bytes() == (root / path).read_bytes() for path in files)


def test_the_file_has_no_weights_and_is_the_same_each_time(written: tuple[Store, Path, Path], tmp_path: Path) -> None:
    store, root, out = written
    again = write_trials(store.config, store.trials(), root, tmp_path)
    assert again is not None
    assert again.read_bytes() == (out / FILE).read_bytes()
    with tarfile.open(out / FILE) as archive:
        assert not [name for name in archive.getnames() if "trained" in name]


def members_of(out: Path) -> dict[str, bytes]:
    with tarfile.open(out / FILE) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]


def write_members(out: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(out / FILE, "w:xz") as archive:
        for one, content in members.items():
            info = tarfile.TarInfo(one)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("seed: 0", "seed: 7"), "config.yaml has other settings than its run"),
        (lambda text: text.replace("seed:", "sed:"), "no config of a run: .*unknown key"),
        (lambda text: text + "- :", "no config of a run"),
    ],
    ids=["edited", "no config", "no YAML"],
)
def test_the_config_of_another_run_is_refused(
    written: tuple[Store, Path, Path], change: Callable[[str], str], reason: str
) -> None:
    """`show`, `answers` and `posthoc` would take the settings of a run from it."""
    store, _, out = written
    members = members_of(out)
    name = next(one for one in members if one.endswith("config.yaml"))
    write_members(out, members | {name: change(members[name].decode()).encode()})
    with pytest.raises(DamagedError, match=reason):
        read_trials(store.config, out)


@pytest.mark.parametrize("name", ["runs/mine-0123abcd/config.yaml", "runs/{run}/arms/best-1/result.json"])
def test_files_of_none_of_its_trials_are_refused(written: tuple[Store, Path, Path], name: str) -> None:
    """A run that is no trial's would be taken for one that was made here, by the next start of its config."""
    store, _, out = written
    members = members_of(out)
    run = next(one.split("/")[1] for one in members if one.startswith("runs/"))
    strange = name.format(run=run)
    write_members(out, members | {strange: b"{}"})
    with pytest.raises(DamagedError, match=rf"it has '{re.escape(strange)}', which is of none of its trials"):
        read_trials(store.config, out)


def test_a_study_without_complete_trials_writes_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert write_trials(store.config, store.trials(), tmp_path, tmp_path) is None


def test_trials_of_another_study_are_refused(written: tuple[Store, Path, Path], tmp_path: Path) -> None:
    store, _, out = written
    other = store.config.model_copy(update={"seeds": (7,)})
    with pytest.raises(ConfigError, match="of a study with another base, search or objective"):
        read_trials(other, out)
    with pytest.raises(ConfigError, match=f"there is no {FILE}"):
        read_trials(store.config, tmp_path)


def test_a_run_folder_that_exists_stays(written: tuple[Store, Path, Path], tmp_path: Path) -> None:
    _, root, out = written
    (name,) = (path.name for path in root.glob("runs/toy-001-*"))
    mine = tmp_path / "two" / "runs" / name / "config.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    unpack_runs(out, tmp_path / "two")
    assert [path.name for path in mine.parent.iterdir()] == ["config.yaml"]
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("state", ["half done", "other figures", "other seconds", "a file", "the same"])
def test_a_trial_whose_run_folder_has_other_results_is_not_taken(
    state: str, written: tuple[Store, Path, Path], tmp_path: Path
) -> None:
    """Its values would be of the file, its records of the folder."""
    first, root, out = written
    there = tmp_path / "two"
    (mine,) = root.glob("runs/toy-001-*")
    run = there / "runs" / mine.name
    shutil.copytree(mine, run)
    arm = run / "arms" / "arm-0.001"
    if state == "half done":
        (arm / "result.json").unlink()
    elif state == "a file":
        shutil.rmtree(run)
        run.touch()
    elif state != "the same":
        result = read_result(arm / "result.json")
        result.scorecard = {"gain": Estimate(-7.0)} if state == "other figures" else result.scorecard
        result.cost = {"seconds": 9.0}
        write_result(arm, result)
    unpack_runs(out, there)
    fits = [unpacked(trial, there) for trial in read_trials(first.config, out)]
    assert fits == [True, state == "the same", True, True]


def test_two_that_begin_with_one_file_do_not_meet(
    written: tuple[Store, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = written[2]
    there, check = tmp_path / "two", exchange.check_files

    def late(file: Path) -> None:
        monkeypatch.setattr(exchange, "check_files", check)
        unpack_runs(out, there)  # another process, meanwhile

    monkeypatch.setattr(exchange, "check_files", late)
    (there / f".from{_suffix(4194304)}").mkdir(parents=True)  # of a process that was killed
    unpack_runs(out, there)
    assert len(list(there.glob("runs/*/arms/*/result.json"))) == 4
    assert [path.name for path in there.iterdir()] == ["runs"]


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"null"])
def test_a_file_with_other_contents_is_refused(written: tuple[Store, Path, Path], text: bytes) -> None:
    store, _, out = written
    with tarfile.open(out / FILE, "w:xz") as archive:
        member = tarfile.TarInfo(TRIALS)
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    with pytest.raises(DamagedError, match="cannot be read"):
        read_trials(store.config, out)


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: bytes(len(raw))])
def test_a_damaged_file_is_refused(written: tuple[Store, Path, Path], damage: Any) -> None:
    store, _, out = written
    (out / FILE).write_bytes(damage((out / FILE).read_bytes()))
    with pytest.raises(DamagedError, match="cannot be read"):
        read_trials(store.config, out)


def test_records_that_were_changed_are_refused(written: tuple[Store, Path, Path], tmp_path: Path) -> None:
    store, root, out = written
    changed_root = Path(shutil.copytree(root / "runs", tmp_path / "other" / "runs")).parent
    for run in changed_root.glob("runs/*"):
        (run / "base" / "timing.json").write_text('{"files": {"reworded.jsonl": "of other answers"}}')
    (tmp_path / "floor").mkdir()
    write_trials(store.config, store.trials(), changed_root, tmp_path / "floor")
    with pytest.raises(DamagedError, match=r"reworded\.jsonl is not as \S+timing\.json notes it"):
        unpack_runs(tmp_path / "floor", tmp_path / "one")
    raw = lzma.decompress((out / FILE).read_bytes())
    changed = raw.replace(b"base" + bytes(508), b"best" + bytes(508))  # the content of a member, padded to a block
    assert changed != raw
    (out / FILE).write_bytes(lzma.compress(changed))
    with pytest.raises(DamagedError, match=r"items\.jsonl is not the file that"):
        unpack_runs(out, tmp_path / "two")
    for name in ("one", "two"):
        assert [path.name for path in (tmp_path / name).rglob("*")] == ["runs"], "a refused file leaves no run"


def test_a_full_disk_leaves_no_run_in_part(
    written: tuple[Store, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start would take a run folder that exists for a whole one."""
    _, _, out = written
    copy, calls = shutil.copyfileobj, []

    def fails_at_the_fourth(source: Any, file: Any) -> None:
        calls.append(file)
        if len(calls) == 4:
            raise OSError("no space left on device")
        copy(source, file)

    monkeypatch.setattr(shutil, "copyfileobj", fails_at_the_fourth)
    with pytest.raises(OSError, match="no space left"):
        unpack_runs(out, tmp_path / "two")
    assert [path.name for path in (tmp_path / "two").rglob("*")] == ["runs"]
    monkeypatch.undo()
    unpack_runs(out, tmp_path / "two")
    assert len(list((tmp_path / "two").glob("runs/*/arms/*/result.json"))) == 4


def rewritten(out: Path, change: Any) -> None:
    """Write the file again with other trials: change gets what trials.json has."""
    with tarfile.open(out / FILE) as archive:
        contents = {m.name: (m, archive.extractfile(m).read()) for m in archive.getmembers()}  # type: ignore[union-attr]
    values = json.loads(contents[TRIALS][1])
    change(values["trials"])
    with tarfile.open(out / FILE, "w:xz") as archive:
        for member, content in contents.values():
            content = json.dumps(values).encode() if member.name == TRIALS else content
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("picks", {"training.steps": 1}, "trial 0: it has picks or values that the study does not have"),
        ("picks", {"training.steps": 99, "rate": 0.1}, "99"),
        ("picks", {"training.steps": None, "rate": 0.1}, "None"),
        ("picks", [], "valid dictionary"),
        ("values", [], "values"),
        ("values", [0.1, 0.2], "trial 0: it has picks or values"),
        ("values", [float("nan")], "finite"),
        ("values", ["1"], "valid number"),
        ("constraints", {"kl": None}, "valid number"),
        ("seconds", -1.0, "greater than or equal"),
        ("seconds", 1e300, "less than or equal"),
        ("number", "0", "valid integer"),
        ("runs", [{"seed": 0, "folder": "runs/none", "result": {}}], "its run 'runs/none' is not in the file"),
        ("runs", [{"seed": 0, "folder": "runs/../../etc", "result": {}}], r"its run 'runs/\.\./\.\./etc' is not in"),
        ("runs", [{"seed": 0, "folder": "/etc", "result": {}}], "its run '/etc' is not in"),
        ("runs", [{"seed": 0, "folder": "own", "result": {}}], "scorecard"),
        ("runs", [{"seed": 0, "folder": "own", "result": {"scorecard": []}}], "items"),
    ],
)
def test_trials_that_the_study_cannot_have_are_refused(
    written: tuple[Store, Path, Path], field: str, value: Any, fault: str
) -> None:
    store, root, out = written
    (own,) = (f"runs/{path.name}" for path in root.glob("runs/toy-000-*"))
    value = json.loads(json.dumps(value).replace('"own"', json.dumps(own)))
    rewritten(out, lambda trials: trials[0].update({field: value}))
    with pytest.raises(DamagedError, match=rf"trials\.tar\.xz cannot be read: .*{fault}.*leave out --from"):
        read_trials(store.config, out)


def test_two_trials_of_one_run_are_written_once(first: tuple[Store, Path, Path], tmp_path: Path) -> None:
    store, root, _ = first
    one = [trial for trial in store.trials() if trial.state == "complete"][:2]
    one[1].runs = one[0].runs
    assert write_trials(store.config, one, root, tmp_path)
    with tarfile.open(tmp_path / FILE) as archive:
        assert len(archive.getnames()) == len(set(archive.getnames()))


def other_values(trials: list[Any]) -> None:
    trials[0]["values"] = [0.99]


def other_figures(trials: list[Any]) -> None:
    trials[0]["runs"][0]["result"]["scorecard"]["gain"]["value"] = 0.99
    trials[0]["values"] = [0.99]


def swapped(field: str) -> Callable[[list[Any]], None]:
    def change(trials: list[Any]) -> None:
        trials[0][field], trials[1][field] = trials[1][field], trials[0][field]

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (other_values, "its values are not those of its results"),
        (other_figures, r"its result is not that of runs/toy-000-.*/arms/arm-0\.001/result\.json"),
        (swapped("runs"), "its run 'runs/toy-001-.*' is of other picks or another seed"),
        (swapped("picks"), "its run 'runs/toy-000-.*' is of other picks or another seed"),
        (swapped("values"), "its values are not those of its results"),
    ],
)
def test_trials_that_do_not_fit_their_runs_are_refused(
    written: tuple[Store, Path, Path], change: Callable[[list[Any]], None], fault: str
) -> None:
    store, _, out = written
    rewritten(out, change)
    with pytest.raises(DamagedError, match=rf"trials\.json, trial 0: {fault}.*leave out --from"):
        read_trials(store.config, out)


def test_runs_that_have_each_others_names_are_refused(written: tuple[Store, Path, Path]) -> None:
    store, root, out = written
    names = [next(root.glob(f"runs/toy-00{i}-*")).name.encode() for i in (0, 1)]
    with tarfile.open(out / FILE) as archive:
        contents = [(m, archive.extractfile(m).read()) for m in archive.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(out / FILE, "w:xz") as archive:
        for member, content in contents:
            parts = member.name.encode().split(b"/")
            if len(parts) > 1 and parts[1] in names:
                member.name = b"/".join([parts[0], names[1 - names.index(parts[1])], *parts[2:]]).decode()
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DamagedError, match=r"trial 0: its result is not that of runs/toy-000"):
        read_trials(store.config, out)


def test_trials_are_plain_json(written: tuple[Store, Path, Path]) -> None:
    with tarfile.open(written[2] / FILE) as archive:
        file = archive.extractfile(TRIALS)
        assert file is not None
        values = json.load(file)
    assert {"number", "picks", "values", "constraints", "seconds", "runs"} == set(values["trials"][0])
