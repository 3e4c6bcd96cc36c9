"""Train in two processes of which one gets SIGTERM: arguments FOLDER RANK, then FOLDER alone to go on."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from experiments.common.signals import sigterm_raises
from experiments.methods import ActiveMethod
from experiments.training.processes import Processes
from tests.helpers.engine import arm_config, train

AT = 3  # the step in which the signal comes; evaluations are at the even ones


def main(folder: Path, rank: int | None = None) -> int:
    dist.init_process_group("gloo")
    with Processes.joined() as processes, sigterm_raises():
        if processes.index == rank:
            _terminated_in_step()
        try:
            outcome = train(arm_config("control"), folder / "arm", processes=processes)
        except SystemExit as end:
            (folder / f"code-{processes.index}").write_text(str(end.code))
            processes.all_gather("stopped")
            return 0
        if processes.is_main:
            torch.save((outcome.logs, outcome.weights), folder / "outcome.pt")
    return 0


def _terminated_in_step() -> None:
    after = ActiveMethod.after_step

    def killed(self: ActiveMethod, model: Any, step: int) -> None:
        after(self, model, step)
        if step == AT:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # the launcher and the scheduler may both send one

    ActiveMethod.after_step = killed  # type: ignore[method-assign]


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
    except Exception:
        traceback.print_exc()
        os._exit(1)  # at once: the other process may be waiting for this one
