"""Every command answers wrong input with one message and its exit code, and never with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

import ctrl
from experiments.cli import main as cli
from experiments.common.commands import command
from experiments.common.errors import CompareError, ConfigError, StudyError
from tests.helpers.planted_run import write_run
from tests.helpers.run_folders import make_run, make_study
from tests.helpers.toy_study import open_store

RUN = ["run", "quickstart"]
POSTHOC = ["posthoc", "nothing", "--arm", "full", "--lr", "1", "--op"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
HALF = '{"suite": "kept", "ta'  # what a process that was killed while it wrote, or a full disk, may leave


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files that are not what they are named for."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.yaml").write_text("a: [1")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "typo.yaml").write_text("name: x\nsrch: {}\n")
    (tmp_path / "twice.yaml").write_text("name: x\nname: y\n")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("name: x\n")
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.json").write_text("{")
    for run, items in (("half", HALF), ("bare", "")):
        (tmp_path / run / "base").mkdir(parents=True)
        (tmp_path / run / "base" / "items.jsonl").write_text(items)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["run", "bytes.yaml"], 2, "bytes.yaml is not YAML"),
        (["run", "empty"], 2, "no config file empty"),
        (["run", "twice.yaml"], 2, "the key 'name' is in line 1 and again in line 2: keep one"),
        (["study", "twice.yaml"], 2, "the key 'name' is in line 1 and again in line 2: keep one"),
        ([*RUN, "--set", "training={steps: 1, steps: 2}"], 2, "the key 'steps' is in line 1 and again in line 1"),
        ([*RUN, "--set", "arms.0.name=../x"], 2, "a folder gets this name"),
        ([*RUN, "--set", "arms.0.learning_rates=[.nan]"], 2, "Input should be a finite number"),
        ([*RUN, "--set", "training.steps=["], 2, "--set training.steps=[: '[' is not YAML"),
        ([*RUN, "--set", "training.steps=x"], 2, "training.steps: Input should be a valid integer"),
        ([*RUN, "--set", "arms.9.name=x"], 2, "'9' is no index into a list of 3"),
        ([*RUN, "--set", "trainig.steps=1"], 2, "did you mean 'training'"),
        ([*RUN, "--root", "file"], 1, "Not a directory: 'file/runs'"),
        (["compare", "nothing"], 2, "'nothing' is no run"),
        (["compare", "empty"], 2, "neither a run folder nor one of lm_eval samples"),
        (["compare", "half"], 2, "line 1 is not an item record"),
        (["compare", "bare"], 2, "bare has no records of its base model: base/items.jsonl is empty"),
        (["gate", "begun"], 2, "begun has no records of its base model: base/items.jsonl is not there"),
        (["compare", "broken.json"], 2, "broken.json is no export of a study"),
        (["gate", "nothing"], 2, "'nothing' is no run"),
        (["gate", "half"], 2, "line 1 is not an item record"),
        ([*POSTHOC, "wise"], 1, "nothing has no finished arm full at 1"),
        ([*POSTHOC, "wize"], 2, "unknown operation 'wize': did you mean 'wise'"),
        (["sync", "nothing"], 1, "no journal in nothing: give run folders"),
        (["study", "nothing.yaml"], 2, "no study nothing.yaml"),
        (["study", "broken.yaml"], 2, "broken.yaml is not YAML"),
        (["study", "bytes.yaml"], 2, "bytes.yaml is not YAML"),
        (["study", "list.yaml"], 2, "must contain a mapping at the top"),
        (["study", "typo.yaml"], 2, "srch: unknown key; did you mean 'search'"),
        (["study", "table5", "--profile", "gpuu"], 2, "no profile 'gpuu': did you mean 'gpu'"),
        (["study", "table5", "--workers", "0"], 1, "workers must be at least 1, but got 0"),
        (
            ["study", "table5", "--storage", "sqlite:///no/such/a.db"],
            1,
            "there is no folder no/such; create it, or correct",
        ),
        (["study", "table5", "--storage", "nosuch://x"], 1, "the storage nosuch://x cannot be used"),
        (["status", "tine"], 1, "no study 'tine': there is no database"),
        (["add-trials", "tine", "3"], 1, "no study 'tine': there is no database"),
        (["report", "tine"], 1, "no study 'tine': there is no database"),
        (["report", "tine", "--out", "x.html"], 2, "--out x.html: give a folder"),
        (["show", "tine"], 2, "no run or study 'tine'"),
        (["export", "tine", "x.csv"], 1, "no study 'tine'"),
        (["resume", "tine"], 1, "no study 'tine'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input(argv: list[str], code: int, message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert not list(place.glob("mlruns/runs/*"))  # nothing was begun
    if argv[0] in ("status", "resume", "report", "export", "add-trials", "show", "compare", "gate"):
        assert not (place / "mlruns").exists()


@pytest.mark.parametrize("argv", [["run"], ["rum", "x"], ["gate", "x", "--margin", "a"], ["posthoc", "x"]])
def test_wrong_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert "usage:" in capsys.readouterr().err


def test_without_a_command_it_says_what_to_do_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith(command("run", "quickstart"))
    assert second.startswith(command("list"))
    assert third.startswith(command("--help"))
    assert "docs/" in third


LIBRARIES = {"torch", "transformers", "mlflow", "optuna", "scipy", "pandas"}
SECONDS = pytest.mark.slow  # Optuna with its database, or 10,000 resamples


@pytest.mark.parametrize(
    ("argv", "needed", "said"),
    [
        (["--help"], set(), "usage:"),
        ([], set(), ""),
        (["list"], set(), "interpolations"),
        (["runs"], set(), "demo-0123abcd"),
        (["show", "demo"], {"scipy", "pandas"}, "+.50"),
        pytest.param(["compare", "judged"], {"scipy", "pandas"}, "retention", marks=SECONDS),
        pytest.param(["gate", "judged", "--margin", "0.5"], {"scipy", "pandas"}, "full-0.001", marks=SECONDS),
        pytest.param(["show", "toy"], {"optuna"}, "Does it?", marks=SECONDS),
        pytest.param(["status", "toy"], {"optuna"}, "toy: 6 waiting of 6", marks=SECONDS),
        pytest.param(["export", "toy", "x.csv"], {"optuna", "pandas"}, "6 trials written", marks=SECONDS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_that_read_files_import_no_torch(argv: list[str], needed: set[str], said: str, tmp_path: Path) -> None:
    root = tmp_path / "mlruns"
    make_run(root, results={"full 0.001": {"gain": 0.5, "retention": 0.9}})
    write_run(tmp_path / "judged", {"full-0.001": (0.05, 0.5), "full-0.0001": (0.0, 0.1)})
    if "optuna" in needed:
        make_study(root, "toy")
        open_store(root, question="Does it?")
    code = "import sys; from experiments.cli.main import main\n"
    code += f"try: main({argv})\nexcept SystemExit: pass\n"
    code += f"print('not needed:', *{LIBRARIES - needed} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert said in done.stdout
    assert done.stdout.splitlines()[-1] == "not needed:"


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (OSError(28, "No space left on device", "table.csv"), 1, "No space left on device: 'table.csv'"),
        (PermissionError(13, "Permission denied", "out"), 1, "Permission denied: 'out'"),
        (OperationalError("INSERT", {}, Exception("database or disk is full")), 1, "database or disk is full"),
        (KeyboardInterrupt(), 130, "the same command continues"),
    ],
    ids=["disk", "permission", "database", "ctrl-c"],
)
def test_what_the_machine_does_to_a_command(
    fault: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*args: object) -> None:
        raise fault

    monkeypatch.setattr("experiments.comparison.inputs.read_runs", fails)
    assert cli.main(["compare", "x"]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ctrl.ConfigError("layers=9"), 2),
        (ctrl.CheckpointError("half a file"), 1),
        (ConfigError("x.yaml: steps"), 2),
        (CompareError("no run"), 2),
        (StudyError("3 trials failed"), 1),
        (ValueError("a bug"), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_code_of_an_error(error: Exception, code: int) -> None:
    assert cli.failure(error) == (code, str(error) if code else "")


def test_a_reader_that_closes_the_pipe_gets_no_error() -> None:
    code = "import sys; from experiments.cli.main import main; sys.exit(main(['list', 'figures']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `head` does, here before the first line
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("experiments.comparison.inputs.read_runs", fails)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main(["compare", "x"])
