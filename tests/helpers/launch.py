"""Two processes of one machine; FSDP2 and DeepSpeed of accelerate work on a CPU if it is given as the accelerator."""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from multiprocessing import connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

from accelerate.state import AcceleratorState, DistributedType, PartialState

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "ACCELERATE_TORCH_DEVICE": "cpu",
}
ROOT = Path(__file__).parents[2]
IMPORTED = [
    "experiments.runs.run",
    "experiments.cli.main",
    "tests.helpers.engine",
    "peft",
    "mlflow.store.tracking.sqlalchemy_store",
    "ipykernel.kernelapp",
    "ipywidgets",
    "seaborn",
    "tests.helpers.frozen",  # the last one
]
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}


def two_processes(script: Path, *arguments: object, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes on this machine, as torchrun starts them, one thread each. timeout: in seconds.

    They are forked from a process that has imported everything (the standard library's fork server), which takes ten
    seconds in each otherwise. If one ends with an error, the other is ended too. `torchrun` is the real command.
    """
    context = forking()
    with tempfile.TemporaryDirectory() as folder, closing(socket.create_server(("127.0.0.1", 0))) as free:
        logs = [Path(folder, name) for name in ("stdout", "stderr")]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        words = [str(script), *map(str, arguments)]
        ended = context.Barrier(2)
        started = [context.Process(target=_process, args=(words, shared, rank, logs, ended)) for rank in range(2)]
        for process in started:
            process.start()
        codes = _wait(started, timeout)
        return subprocess.CompletedProcess(words, int(any(codes)), *(log.read_text() for log in logs))


def forking() -> ForkServerContext:
    """Return the context of processes that are forked from one that has imported everything, one thread each."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def _wait(started: Sequence[BaseProcess], timeout: float) -> list[int | None]:
    """Wait for all to end, or for the first that fails; end those that are left. Returns their exit codes."""
    until = time.monotonic() + timeout
    while any(process.is_alive() for process in started) and not any(process.exitcode for process in started):
        if time.monotonic() > until:
            break
        connection.wait([process.sentinel for process in started if process.is_alive()], timeout=1)
    codes = [process.exitcode if process.exitcode is not None else -signal.SIGKILL for process in started]
    for process in started:
        process.kill()
        process.join()
    return codes


def _process(words: list[str], shared: dict[str, str], rank: int, logs: list[Path], ended: Barrier) -> None:
    """Run a script as the process of a rank; what it writes is added to the logs.

    Rank 0 holds the store, which torchrun would hold: after a success both wait for each other.
    """
    for number, log in enumerate(logs, start=1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    os.chdir(ROOT)
    sys.argv[:] = words
    code: Any = 0
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    if not code:
        with suppress(BrokenBarrierError):
            ended.wait(60)
    sys.exit(code)


def torchrun(script: Path, *arguments: object, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes by torch's own launcher. timeout: in seconds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*command, *map(str, arguments)],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def zero_on_cpu(stage: int = 2) -> None:
    """From now on what `accelerate launch --use_deepspeed --zero_stage 2` does; DeepSpeed has to be installed."""
    import deepspeed

    os.environ.update(DEEPSPEED, ACCELERATE_DEEPSPEED_ZERO_STAGE=str(stage))
    deepspeed.init_distributed(dist_backend="gloo")
    _called_a_gpu()
    for state in (PartialState, AcceleratorState):  # neither looks at DeepSpeed where a CPU is asked for
        whole = state.__init__
        state.__init__ = functools.partialmethod(_without_cpu, whole)


def _without_cpu(state: Any, whole: Any, *args: Any, **kwargs: Any) -> None:
    whole(state, *args, **{**kwargs, "cpu": False})


def shard_on_cpu() -> None:
    """From now on what `accelerate launch --use_fsdp --fsdp_version 2` does; call it once the gloo group is there."""
    os.environ.update(FSDP)
    _called_a_gpu()


def _called_a_gpu() -> None:
    kind = ("gloo", DistributedType.MULTI_GPU)  # by itself it calls this MULTI_CPU, which it does not shard
    PartialState._prepare_backend = lambda *args, **kwargs: kind  # type: ignore[method-assign]
