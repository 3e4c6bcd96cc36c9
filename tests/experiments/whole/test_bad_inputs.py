"""Hundreds of wrong inputs: each ends with one message that names it and its exit code, and leaves nothing behind.

The tables are `tests/helpers/bad_*.yaml`: more than 900 rows. On two busy cores the median answer took .04 s (runs),
.34 s (rows of data), .10 s (studies), .05 s (calls) and .001 s (ctrl); the longest import lm_eval, some 10 s of a core.
What a row is given to must stop before it measures or trains.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

import ctrl
from experiments.cli.main import main, parser
from experiments.common.yaml_values import dump_yaml, set_field
from tests.helpers.byte_level import byte_base
from tests.helpers.planted_run import write_run
from tests.helpers.run_folders import make_study
from tests.helpers.tiny_llama import IDS, expanded, tiny
from tests.helpers.toy_study import open_store

HELPERS = Path(__file__).parents[2] / "helpers"
MEDIAN = 0.5  # seconds to an answer
ONE = {"name": "b", "method": "full", "learning_rates": [1e-2]}
RUN: dict[str, Any] = {
    "name": "case", "base_model": "m", "precision": "fp32", "data": {"new": {"source": "file", "path": "sums.jsonl"}},
    "training": {"steps": 4, "batch_size": 4, "warmup_steps": 1},
    "evaluation": {"every": 2, "suites": {"new": {}, "kept": {"tasks": ["capitals"], "items": 20}}, "new_items": 4},
    "arms": [{"name": "full", "method": "full", "learning_rates": [3e-2]}, ONE],
}  # fmt: skip
STUDY: dict[str, Any] = {
    "name": "q", "base": {**RUN, "arms": RUN["arms"][:1]}, "sampler": "grid",
    "search": {"x": {"kind": "choice", "path": "training.weight_decay", "values": [0.0, 0.1]}},
    "objectives": [{"figure": "gain", "direction": "maximize"}],
}  # fmt: skip
FILES: dict[str, str | bytes] = {
    "bytes.yaml": b"\xff\xfe\x00", "list.yaml": "- 1", "twice.yaml": "name: x\nname: y\n", "broken.yaml": "a: [1",
    "tag.yaml": "name: !!python/object/apply:os.system [touch ran]\n", "loop.yaml": "name: &a [*a]\n",
    "deep.yaml": f"a: {'[' * 5000}", "digits.yaml": f"seed: {'9' * 5000}", "typo.yaml": "name: x\nsrch: {}\n",
    "bomb.yaml": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ) + "arms: [{name: x, method: control, learning_rates: [0.1], control: {layers: *i}}]\n",
    "broken.json": "{", "export.csv": "a,b\n1,2\n", "broken.db": b"no database at all" * 100,
    "begun/config.yaml": "name: x\n", "odd/config.yaml": "arms: 5\n", "text/config.yaml": "arms",
    "other/trials.tar.xz": "x","half/base/items.jsonl": '{"suite": "kept", "ta', "bare/base/items.jsonl": "",
    "q.yaml": dump_yaml(STUDY),
    "sums.jsonl": "".join(f'{{"question": "{i} + {i + 1} =", "answer": "{2 * i + 1}"}}\n' for i in range(40)),
    "words.jsonl": "".join(f'{{"question": "word {i}", "answer": "x"}}\n' for i in range(40)),
}  # fmt: skip


class Accepted(BaseException):
    """A wrong input was taken: the command would measure or train now."""


def accepted(*_: object, **__: object) -> None:
    raise Accepted


def table(name: str) -> list[Any]:
    rows: list[Any] = yaml.safe_load((HELPERS / f"bad_{name}.yaml").read_text())
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of all rows: a model, data, two runs, a study, and files that are not what they seem."""
    folder = tmp_path_factory.mktemp("bad")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        byte_base(Path("m"))
        Path("empty").mkdir()
        for name, text in FILES.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        for name in ("fifo.jsonl", "fifo.yaml"):
            os.mkfifo(name)
        for seed, name in enumerate(("run-1", "run-2")):
            write_run(Path(name), {"full-0.001": (0.05, 0.5), "control-0.001": (0.0, 0.4)}, n=40, seed=seed)
            (Path(name) / "config.yaml").write_text(dump_yaml({**RUN, "name": name}))
        make_study(Path("mlruns"), "toy")
        open_store(Path("mlruns"))
        for work in (
            "runs.run.lead",
            "studies.launch.Tracker",
            "measure.folder.Tracker",
            "posthoc.run._opened",
        ):
            patch.setattr(f"experiments.{work}", accepted)
        patch.setattr("experiments.cli.main.parser", functools.cache(parser))  # made anew for each of 800 calls
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


def tree(folder: Path) -> dict[Path, int]:
    """Return size by path; locks and the logs of an open database are no results."""
    found = [path for path in folder.rglob("*") if path.suffix != ".lock" and not path.name.startswith("optuna.db-")]
    return {path: path.lstat().st_size for path in found}


def answer(argv: list[str]) -> tuple[Any, str]:
    """Return the exit code of a call in this process, and what it wrote to stderr."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            code: Any = main(argv)
        except SystemExit as end:  # of argparse
            code = end.code
        except (Exception, Accepted) as end:
            code = repr(end)
    return code, error.getvalue()


def judge(folder: Path, argv: list[str], words: str, code: int, row: object) -> tuple[list[str], float]:
    """Return what is wrong with the answer to a call, and its seconds."""
    before, began = tree(folder), time.perf_counter()
    got, said = answer(argv)
    seconds, left = time.perf_counter() - began, sorted(tree(folder).items() ^ before.items())
    faults = [] if got == code else [f"exit code {got}, not {code}"]
    faults += [] if words in said else [f"{words!r} is not in {said!r}"]
    faults += [f"left behind: {left[:3]}"] if left else []
    return [f"{row}: {fault}" for fault in faults], seconds


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Set fields by their dotted keys; null takes one out."""
    values = copy.deepcopy(values)
    for key, value in changes.items():
        set_field(values, key, value)
        if value is None:
            *parents, last = key.split(".")
            part: Any = values
            for parent in parents:
                part = part[int(parent)] if isinstance(part, list) else part[parent]
            del part[last]
    return values


def calls(name: str, step: int, folder: Path) -> Iterator[tuple[list[str], str, int, object]]:
    """Yield the command line, the words and the exit code of each step-th row; write the files that it needs."""
    for row in (row for row in table(name)[::step] if step == 1 or "--lm-eval" not in row[0]):
        given, (words, *code) = row[:-1] if name == "rows" else row[:1], row[-1:] if name == "rows" else row[1:]
        argv = ["study" if name == "studies" else "run", "c.yaml", "--root", "root"]
        if name == "calls":
            argv = shlex.split(row[0])
        elif name == "rows":
            (folder / given[0]).write_text(given[1])
            source = {"source": "file", "path": given[0], **given[2]}
            (folder / "c.yaml").write_text(dump_yaml(changed(RUN, {"data.new": source})))
        else:
            (folder / "c.yaml").write_text(dump_yaml(changed(STUDY if name == "studies" else RUN, row[0])))
        yield argv, words, code[0] if code else 2, row
        if name == "rows":
            (folder / given[0]).unlink()


STEPS = pytest.mark.parametrize("step", [10, pytest.param(1, marks=pytest.mark.slow)])  # few rows, or all


@STEPS
@pytest.mark.parametrize("name", ["runs", "rows", "studies", "calls"])
def test_a_wrong_input_is_answered_and_leaves_nothing(name: str, step: int, place: Path) -> None:
    faults, seconds = [], []
    for argv, words, code, row in calls(name, step, place):
        wrong, took = judge(place, argv, words, code, row)
        faults += wrong
        seconds.append(took)
    assert not faults, "\n".join(faults)
    assert statistics.median(seconds) < MEDIAN


@pytest.fixture(scope="module")
def expansions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ctrl.save, and damaged copies of it."""
    folder = tmp_path_factory.mktemp("expansions")
    config, weights = "control_config.json", "model.safetensors"
    ctrl.save(expanded(), folder / "saved")
    ctrl.save(expanded(layers=[0]), folder / "one")
    tensors, values = load_file(folder / "saved" / weights), json.loads((folder / "saved" / config).read_text())
    first = next(iter(tensors))
    for name in ("cut", "random", "other", "nan", "half", "bytes", "list", "typo"):
        shutil.copytree(folder / "saved", folder / name)
    os.truncate(folder / "cut" / weights, (folder / "saved" / weights).stat().st_size // 2)
    (folder / "random" / weights).write_bytes(bytes(7 * i % 256 for i in range(4000)))
    shutil.copy(folder / "one" / weights, folder / "other" / weights)
    save_file({**tensors, first: tensors[first] * float("nan")}, folder / "nan" / weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, folder / "half" / weights)
    (folder / "bytes" / config).write_bytes(b"\xff\xfe\x00")
    (folder / "list" / config).write_text("[1]")
    (folder / "typo" / config).write_text(json.dumps({**values, "control": {**values["control"], "typo": 1}}))
    (folder / "empty").mkdir()
    return folder


@STEPS
def test_a_wrong_call_of_the_library_is_refused(step: int, expansions: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    given = {"ctrl": ctrl, "torch": torch, "folder": expansions, "ids": IDS, "bert": BertModel(BertConfig(**sizes))}
    faults, seconds, before = [], [], tree(expansions)
    for code, words in table("ctrl")[::step]:
        models, began = {"plain": tiny(), "expanded": expanded()}, time.perf_counter()
        try:
            eval(code, {**given, **models})
            faults.append(f"{code}: accepted")
        except (ctrl.ConfigError, ctrl.CheckpointError) as error:
            faults += [] if words in str(error) else [f"{code}: {words!r} is not in {str(error)!r}"]
        seconds.append(time.perf_counter() - began)
    assert not faults, "\n".join(faults)
    assert tree(expansions) == before
    assert statistics.median(seconds) < MEDIAN


SEVERAL = ["run twice.yaml", "compare nothing run-1"]  # with torch and without it


@pytest.mark.slow
@pytest.mark.parametrize("line", SEVERAL)
def test_the_same_from_a_shell(line: str, place: Path) -> None:
    row = next(row for row in table("calls") if row[0] == line)
    command = [sys.executable, "-m", "experiments.cli", *shlex.split(line)]
    paths = os.environ | {"PYTHONPATH": str(HELPERS.parents[1])}
    done = subprocess.run(command, cwd=place, env=paths, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert row[1] in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WORLD_SIZE", "x", "WORLD_SIZE='x' is no number of processes"),
        ("WORLD_SIZE", "-1", "WORLD_SIZE='-1' is no number of processes"),
        ("WORLD_SIZE", "2", "WORLD_SIZE=2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set"),
        ("PMI_SIZE", "2", "PMI_SIZE=2: processes of MPI do not train together here"),
        ("OMPI_COMM_WORLD_SIZE", "4", "OMPI_COMM_WORLD_SIZE=4: processes of MPI do not train together here"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "but deepspeed is not installed"),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER", "Write it there, training.arguments: {torch_compile_backend: NAME}"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parts of a layer or of a row on several devices"),
    ],
)
def test_a_wrong_environment(name: str, value: str, words: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    (place / "c.yaml").write_text(dump_yaml(RUN))
    assert not judge(place, ["run", "c.yaml", "--root", "root"], words, 2, name)[0]


@pytest.mark.slow
def test_what_is_right_is_accepted(place: Path) -> None:
    """Else each row could be refused for something that all have."""
    (place / "c.yaml").write_text(dump_yaml(RUN))
    assert answer(["run", "c.yaml", "--root", "root"])[0] == "Accepted()"
    assert answer(["study", "q.yaml", "--root", "root"])[0] == "Accepted()"
    assert answer(["measure", "--base", "m", "--model", "x=m", "--root", "root"])[0] == "Accepted()"
    shutil.rmtree(place / "root")


def test_the_tables_are_whole() -> None:
    """All commands, and all options that take a value, are in them, and no row is there twice."""
    rows = [json.dumps(row) for name in ("runs", "rows", "studies", "calls", "ctrl") for row in table(name)]
    assert len(set(rows)) == len(rows) >= 800
    given = [re.split(r"[ =]", row[0]) for row in table("calls")]
    (commands,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    lacking = [
        f"{name} {action.option_strings}"
        for name, command in commands.items()
        for action in command._actions
        if action.nargs != 0 and action.option_strings
        if not any(words[0] == name and set(words) & set(action.option_strings) for words in given)
    ]
    assert lacking == []
    assert {words[0] for words in given} >= set(commands)
