"""Run an experiment: base evaluated once, every arm trained and evaluated on the same data, report at the end.

All state is in `mlruns/runs/<name>-<digest>/`. The same config continues there: finished arms are read, not run again,
and a half-run arm resumes from its last complete checkpoint. Several processes (torchrun, accelerate launch) train
together; see `experiments.training.processes`.
"""

from __future__ import annotations

import gc
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.common.errors import BenchError, MachineError, RunError, Stopped
from experiments.common.files import remove
from experiments.common.machine_faults import disk_full, of_the_machine
from experiments.common.paths import default_root
from experiments.common.signals import sigterm_raises
from experiments.config import ExperimentConfig, run_config
from experiments.runs.arm import Observer, Session
from experiments.runs.checks import check_device
from experiments.runs.experiment import follow, lead
from experiments.runs.fits import check_fits
from experiments.runs.growing import with_begun_arms
from experiments.runs.outcome import Outcome
from experiments.runs.prepared import Prepared, prepare, read_inputs
from experiments.runs.same_data import Agree, digests_of
from experiments.runs.unused import check_fields
from experiments.tracking.run import ParentRun
from experiments.tracking.tracker import Tracker
from experiments.training.channel import AbortLaunch
from experiments.training.launcher import world_size
from experiments.training.processes import Processes


def run_experiment(
    config: ExperimentConfig,
    root: str | Path | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = print,
    parent: ParentRun | None = None,
    observe: Observer | None = None,
    experiment: str | None = None,
    force: bool = False,
    agree: Agree | None = None,
) -> Outcome:
    """Run or continue an experiment. fresh: drop what an earlier run of this config left. Raises RunError.

    root: where results go; default: `mlruns` of the current project. parent: the MLflow run of the study's trial that
    this experiment belongs to. observe: called after each evaluation with the arm's result so far; may raise
    StopArm. experiment: name of the MLflow experiment, if it is not the config's: a study's trials share one. force:
    start a run that does not fit into memory. agree: gets the digests of data and base before anything is made; raises
    RunError if other trials have others. Under a launcher every process calls it with the same arguments, and gets
    the outcome of the main process.
    """
    if parent is not None:
        only_one_process("a study")
    if observe is not None:
        only_one_process("an observer")
    root = Path(root).expanduser() if root else default_root()
    folder = run_folder(config, root)
    config = config if fresh else with_begun_arms(config, folder)
    if parent is None:
        check_fields(config)
    with errors_explained(root), Processes.joined() as processes:
        processes.cut(config.training)
        check_device()
        if not force:
            check_fits(config, processes.count)
        if not processes.is_main:
            with sigterm_raises():  # the main process does so for its run in MLflow
                return follow(config, folder, processes)
        inputs = read_inputs(config, root, say)
        if agree is not None:
            agree(digests_of(inputs, root))
        folder.parent.mkdir(parents=True, exist_ok=True)
        with only_one(folder):
            if folder.is_symlink() and (fresh or not folder.exists()):
                raise RunError(f"{folder} is a link, which is neither emptied nor followed to nothing: delete the link")
            if fresh and folder.exists():
                remove(folder, root / "cache" / "removed")
            if with_begun_arms(config, folder).to_dict() != config.to_dict():  # while the inputs were read
                raise RunError(f"arms were added to {folder.name} meanwhile: start the same command again")
            session = Session(Tracker(root, experiment or config.name), say, observe, parent)
            return lead(inputs, folder, session, processes)


def only_one_process(what: str) -> None:
    """Raise RunError under a launcher with several processes, for what is not made for them."""
    if world_size() > 1:
        raise RunError(
            f"WORLD_SIZE={world_size()}: {what} runs in one process on one device. A study fills many devices with one "
            "worker each (CUDA_VISIBLE_DEVICES=1 control-llm study ...); several processes can train the arms of "
            "`control-llm run`"
        )


def run_folder(config: ExperimentConfig, root: Path) -> Path:
    return root / "runs" / f"{config.name}-{config.digest()}"


def open_run(folder: Path, say: Callable[[str], None] = print) -> Prepared:
    """Prepare a run that is on disk, to measure more models as its arms were measured."""
    only_one_process("measuring more models")
    return prepare(run_config(folder), folder, say)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process. Raises RunError if another one has it."""
    try:
        with FileLock(f"{folder}.lock", timeout=0):
            yield
    except Timeout:
        raise RunError(f"another process is running {folder.name}: wait for it, or stop it first") from None


@contextmanager
def errors_explained(root: Path) -> Iterator[None]:
    """Raise RunError, which says how to go on, for a fault of the machine and for a launch that has to end.

    KeyboardInterrupt becomes Stopped, without the frames that hold models.
    """
    try:
        yield
    except (BrokenPipeError, MachineError):  # the reader of the output left; explained already
        raise
    except KeyboardInterrupt as error:
        traceback.clear_frames(error.__traceback__)  # a notebook keeps the traceback, and with it the model
        gc.collect()
        raise Stopped("stopped; what is recorded is kept, and the same call goes on from the last checkpoint") from None
    except Exception as error:
        if fault := of_the_machine(error):
            raise MachineError(_machine_text(error, fault, root)) from error
        if isinstance(error, AbortLaunch):
            raise RunError(
                f"{error}\nThe processes of a launch cannot go on without each other, so it ends. Everything recorded "
                "so far is kept; the same command goes on, and meets the same error unless its cause is gone"
            ) from error
        raise


def _machine_text(error: BaseException, fault: str, root: Path) -> str:
    if disk_full(error):
        free = shutil.disk_usage(_existing(root)).free / 1e9
        return (
            f"no space left on the disk that holds {root} ({free:.1f} GB free). Everything recorded so far is "
            "kept: free some space, then run the same command again"
        )
    said = f"{error}\nThe cause is" if isinstance(error, BenchError | AbortLaunch) else "this is"
    return (
        f"{said} a fault of the machine: {fault}\nEverything recorded so far is kept, and nothing counts as failed: "
        "the same command goes on when its cause is gone"
    )


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
