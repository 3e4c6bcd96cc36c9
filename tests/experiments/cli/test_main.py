"""Every command answers wrong input with one message and its exit code, and never with a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sqlalchemy.exc import OperationalError

import ctrl
from experiments.cli import main as cli
from experiments.common.commands import command
from experiments.common.errors import CompareError, ConfigError, StudyError
from tests.helpers.planted_run import write_run
from tests.helpers.run_folders import make_run, make_study
from tests.helpers.toy_study import open_store

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}


def test_without_a_command_it_says_what_to_do_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith(command("run", "quickstart"))
    assert second.startswith(command("list"))
    assert third.startswith(command("--help"))
    assert "docs/" in third


@pytest.mark.parametrize(
    ("words", "name", "values"),
    [
        ("gate after --new gsm8k math --new arc", "new", ["gsm8k", "math", "arc"]),
        ("posthoc r --arm a-1 --op task_vectors --with A --with B", "others", [Path("A"), Path("B")]),
        ("soften --base b --model m --to x --alphas .2 --alphas .4", "alphas", [0.2, 0.4]),
        ("measure --base b --model m --suites new --suites kept", "suites", ["new", "kept"]),
        ("measure --base b --model m --lm-eval arc --lm-eval piqa", "lm_eval", ["arc", "piqa"]),
    ],
)
def test_an_option_of_several_values_may_be_repeated(words: str, name: str, values: list[object]) -> None:
    """argparse alone would keep those of the last place."""
    parser = cli.parser()
    for _ in range(2):
        assert getattr(parser.parse_args(words.split()), name) == values


@pytest.mark.parametrize(
    "words",
    [
        "measure --base b --model m --new a.jsonl --new c.jsonl",
        "gate after --margin .5 --marg .01",
        "run quickstart --root a --root b",
        "study s.yaml --workers 1 --workers=2",
    ],
)
def test_an_option_of_one_value_is_given_once(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.parser().parse_args(words.split())
    assert "is given twice, " in capsys.readouterr().err


LIBRARIES = {"torch", "transformers", "mlflow", "optuna", "scipy", "pandas"}
READERS: list[tuple[list[str], set[str], str]] = [  # arguments, what they need of these, and what they say
    (["--help"], set(), "usage:"),
    ([], set(), ""),
    (["list"], set(), "interpolations"),
    (["runs"], set(), "demo-0123abcd"),
    (["show", "demo"], {"scipy", "pandas"}, "+.50"),
    (["compare", "judged"], {"scipy", "pandas"}, "retention"),
    (["gate", "judged", "--margin", "0.5"], {"scipy", "pandas"}, "full-0.001"),
    (["show", "toy"], {"optuna"}, "Does it?"),
    (["status", "toy"], {"optuna"}, "toy: 6 waiting of 6"),
    (["export", "toy", "x.csv"], {"optuna", "pandas"}, "6 trials written"),
]
# Each in a fork of one process: what that has imported for some is not there for the others.
FORKED = """
import json, os, sys
import experiments.cli.main as cli
for number, (argv, unneeded) in enumerate(json.load(sys.stdin)):
    if not os.fork():
        sys.stdout = sys.stderr = open(f"said-{number}.txt", "w")
        try: cli.main(argv)
        except SystemExit: pass
        print("not needed:", *set(unneeded) & set(sys.modules), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize(
    "chosen", [READERS[:4], pytest.param(READERS[4:], marks=pytest.mark.slow)], ids=["files", "figures"]
)
def test_commands_that_read_files_import_no_torch(
    chosen: list[tuple[list[str], set[str], str]], tmp_path: Path
) -> None:
    """The slow ones need Optuna with its database, or 10,000 resamples."""
    root = tmp_path / "mlruns"
    make_run(root, results={"full 0.001": {"gain": 0.5, "retention": 0.9}})
    write_run(tmp_path / "judged", {"full-0.001": (0.05, 0.5), "full-0.0001": (0.0, 0.1)})
    if any("optuna" in needed for _, needed, _ in chosen):
        make_study(root, "toy")
        open_store(root, question="Does it?")
    given = json.dumps([(argv, sorted(LIBRARIES - needed)) for argv, needed, _ in chosen])
    subprocess.run([sys.executable, "-c", FORKED], cwd=tmp_path, input=given, text=True, env=ENVIRONMENT, check=True)
    for number, (argv, _, said) in enumerate(chosen):
        text = (tmp_path / f"said-{number}.txt").read_text()
        assert said in text, argv
        assert text.splitlines()[-1] == "not needed:", argv


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (
            OSError(28, "No space left on device", "table.csv"),
            1,
            "No space left on device: 'table.csv'; nothing recorded",
        ),
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


def test_ctrl_c_before_the_command_begins(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.cli.main.parser", interrupted)
    assert cli.main(["runs"]) == 130
    assert capsys.readouterr().err == "stopped; the same command continues where this one stopped\n"


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


def test_a_link_to_itself_is_named() -> None:
    """Python before 3.13 has no OSError for it."""
    assert cli.failure(RuntimeError("Symlink loop from '/a'")) == (1, "Symlink loop from '/a': delete this link")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("cannot allocate"), "fault of the machine: MemoryError: cannot allocate"),
        (ConnectionError("reset by peer"), "reset by peer; nothing recorded is lost"),
        (RuntimeError("CUDA driver error: unknown"), "fault of the machine"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), r"allocate 2 GiB\. Nothing"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_full_memory_or_a_lost_machine_is_one_line(error: Exception, said: str) -> None:
    """Of any command: they ended `soften` in a traceback."""
    code, message = cli.failure(error)
    assert code == 1
    assert re.search(said, message)
    assert "\n" not in message


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
