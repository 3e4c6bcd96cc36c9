"""Kill runs and studies at random moments, start them again until they end, and compare with what was never killed.

python -m tests.helpers.kills run study --kills 500 --seed 3    # prints the kills of each; exit 1: unequal

It does runs, then studies, until each kind was killed so often. The slow tier does 50 kills of each.

Equal: item records and weights byte for byte, results but for seconds and memory, one journal and one finished MLflow
run per thing, and every point of a metric once in the store. Each attempt is a forked child of this process, which has
imported everything and trains nothing itself: a kill then hits the work, not the imports. The system ends a child by a
timer of its own, after so many seconds of the processor: a busy machine moves no kill, and no Python code runs.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from experiments.common.files import read_json
from experiments.common.signals import sigterm_raises
from experiments.config import parse_config
from experiments.runs.run import run_experiment
from experiments.studies.launch import run_study
from experiments.studies.load import parse_study
from experiments.studies.queue import Store
from experiments.tracking.journal import PATTERN
from experiments.tracking.tracker import Tracker
from tests.helpers.byte_level import byte_base
from tests.helpers.damaged import without_pictures
from tests.helpers.small_run import small_values
from tests.helpers.tiny_study import RATE, study_values

MEASURED = ("cost/", "system/", "trials/", "tokens_per_s")  # differ by nature
IMPORTED = ("mlflow.store.tracking.sqlalchemy_store", "reasoning_gym.factory")  # by the work, and not by this module
STORE = "mlflow.db"  # which takes longest to make
LOG = "log.txt"  # what the attempts print
HANGS = 300  # seconds after which an attempt is taken to hang; it needs less than 60
Work = Callable[[Path], object]


class Unequal(AssertionError):
    """What was killed differs from what was not."""


def start(work: Work, root: Path, seconds: float = 0) -> int:
    """Do the work in a forked child, and return its process id. seconds: of the processor, until it is killed; 0: not.

    The signal of the timer ends a process at once, as SIGKILL does.
    """
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(root / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.dump_traceback_later(HANGS, exit=True, file=2)
    tqdm.set_lock(threading.RLock())  # its own lock is shared with forked processes, and a killed one may hold it
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        work(root)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def ended(pid: int, root: Path) -> bool | None:
    """Whether a child has done its work; None if it was killed. Raises Unequal if it failed by itself, or hung."""
    found, status = os.waitpid(pid, os.WNOHANG)
    if found and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return None
    if found and status:
        said = (root / LOG).read_text(errors="replace")[-5000:]
        raise Unequal(f"an attempt failed by itself, with status {status}. The end of its log:\n{said}")
    return bool(found)


def killed(work: Work, root: Path, moments: Iterator[float], processes: int = 1, store: Path | None = None) -> int:
    """Do the work in as many processes, kill each after the next of the moments, and start it again.

    moments: seconds of the processor; each process is left alone when there are none. store: is there at the second
    start, as if another run had made it. Returns the number of kills. Each process does the whole work with the others,
    as from several shells.
    """
    root.mkdir(parents=True)
    left, kills = [start(work, root, next(moments, 0)) for _ in range(processes)], 0
    try:
        while left:
            time.sleep(0.005)
            states = {pid: ended(pid, root) for pid in left}
            left[:] = [pid for pid, done in states.items() if done is False]
            for _ in (done for done in states.values() if done is None):
                kills += 1
                if store and processes == 1 and not (root / STORE).exists():
                    shutil.copy(store, root / STORE)
                left.append(start(work, root, next(moments, 0)))
    finally:
        for pid in left:  # after an error, or if this process is to end
            kill(pid)
    return kills


def kill(pid: int) -> None:
    """End a child, unless it has been waited for already."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def files(root: Path) -> dict[str, bytes]:
    """Return the records and the weights of all runs by their path below the root."""
    found = [p for p in sorted(root.glob("runs/**/*")) if p.name.startswith("items") or p.suffix == ".safetensors"]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def results(root: Path) -> dict[str, Any]:
    """Return the results of all arms, of their costs only the tokens, without the digest, which covers the seconds."""
    found = {str(path.relative_to(root)): read_json(path) for path in sorted(root.glob("runs/*/arms/*/result.json"))}
    for result in found.values():
        result["cost"] = {"tokens": result["cost"]["tokens"]}
        del result["digest"]
    return found


def tracked(root: Path, experiment: str) -> tuple[Counter[Any], Counter[Any]]:
    """Return how often the store has each run (kind, trial, name, status) and each point of one."""
    tracker = Tracker(root, experiment)
    runs, points = Counter[Any](), Counter[Any]()
    for run in tracker.client.search_runs([tracker.experiment_id], max_results=1000):
        tags = run.data.tags
        name = (tags["kind"], tags.get("trial", ""), run.info.run_name)
        runs[(*name, run.info.status)] += 1
        for metric in (m for m in run.data.metrics if not m.startswith(MEASURED)):
            history = tracker.client.get_metric_history(run.info.run_id, metric)
            points.update((*name, metric, point.step, str(point.value)) for point in history)
    return runs, points


def compare(whole: Path, other: Path, experiment: str) -> None:
    """Raise Unequal if a root with killed work differs from one without. It names the first difference."""
    for what, read in (("files", files), ("results", results)):
        one, two = read(whole), read(other)
        if differing := sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name)):
            raise Unequal(f"{what} differ: {differing[:5]}")
    for what, one, two in zip(("runs", "points"), tracked(whole, experiment), tracked(other, experiment), strict=True):
        if one != two:
            lost, more = list((one - two).items()), list((two - one).items())
            raise Unequal(f"{what} of the store: lost {lost[:5]}, more {more[:5]}")
    journals = Counter(path.parent for path in other.glob(f"runs/**/{PATTERN}"))
    if several := [str(folder) for folder, count in journals.items() if count > 1]:
        raise Unequal(f"two journals of one run: {several}")


def one_run(base: str) -> Work:
    training = {"steps": 6, "batch_size": 2, "warmup_steps": 1, "save_every": 1}
    values = small_values(base, training=training)
    values["evaluation"]["kept_tasks"] = ["capitals"]  # others read dictionaries, which takes seconds
    return lambda root: run_experiment(parse_config(values), root)


def one_study(base: str) -> Work:
    values = study_values(base, search={"rate": {**RATE, "values": [1e-3, 3e-3, 1e-2]}}, retries=50, heartbeat=5)
    return lambda root: run_study(parse_study(values), root)


def trials(root: Path) -> list[Any]:
    """Return the picks and values of all trials; they are all complete, or Unequal is raised."""
    found = Store(f"sqlite:///{root / 'optuna.db'}", name="tiny").trials()
    if any(trial.state != "complete" for trial in found):
        raise Unequal(f"trials: {[(trial.state, trial.reason) for trial in found]}")
    return [(trial.picks, trial.values) for trial in found]


def processor(work: Callable[[], object]) -> float:
    """Return the seconds of the processor that children needed for some work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def check(kind: str, kills: int, most: int, folder: Path, base: str, chance: random.Random) -> None:
    """Do the work once without kills, then again with at most so many kills each, until `kills` are made; compare.

    An attempt does what a start of finished work does, and then up to a sixteenth of the work before it is killed.
    """
    work = {"run": one_run, "study": one_study}[kind](base)
    experiment, processes = {"run": ("small", 1), "study": ("tiny", 2)}[kind]
    whole, empty = folder / kind, folder / f"{kind}-empty"
    killed(lambda root: Tracker(root, "Default"), empty, iter(()))
    seconds = processor(lambda: killed(work, whole, iter(())))
    again = processor(lambda: os.waitpid(start(work, whole), 0))
    done = number = 0
    while done < kills:
        other, began = folder / f"{kind}-{number}", time.monotonic()
        moments = iter([chance.uniform(0, again + seconds / 16) for _ in range(min(most, kills - done))])
        now = killed(work, other, moments, processes, empty / STORE)
        compare(whole, other, experiment)
        if kind == "study" and trials(whole) != trials(other):
            raise Unequal(f"trials differ: {trials(whole)} and {trials(other)}")
        print(f"{kind} {number}: {now} kills, {time.monotonic() - began:.0f} s, equal", flush=True)
        done, number = done + now, number + 1
    print(f"{done} kills of {number} x {kind}: nothing lost, nothing repeated", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("kinds", nargs="+", choices=("run", "study"), metavar="KIND", help="run, study or both")
    parser.add_argument("--kills", type=int, default=50, help="of each kind (default: %(default)s)")
    parser.add_argument("--most", type=int, default=50, help="of one run or study; then it is left alone")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", flush=True)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    folder, chance = Path(tempfile.mkdtemp(prefix="kills-")), random.Random(args.seed)
    try:
        with sigterm_raises(), pytest.MonkeyPatch.context() as patch:
            without_pictures(patch)
            for name in IMPORTED:
                importlib.import_module(name)
            gc.freeze()  # else each child collects what it shares with this process
            base = byte_base(folder / "base")
            for kind in args.kinds:
                check(kind, args.kills, args.most, folder, base, chance)
        shutil.rmtree(folder)
    except Unequal as error:
        print(f"{error}\nfolder: {folder}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
