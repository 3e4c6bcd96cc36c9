"""The processes of one run: one, or as many as torchrun or accelerate started. The first leads, the others follow.

The first process alone writes: data, base records, checkpoints' markers, MLflow, the report. The others train beside
it, each on its part of every batch, and wait while it measures (a model in shards is measured by all, recorded by one).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import DeepSpeedPlugin, PartialState

from experiments.common.errors import ConfigError

PATIENCE = timedelta(days=7)  # the others wait while the first evaluates a large model, which may take hours


class FirstFailed(RuntimeError):
    """What the first process did for all of them failed; raised in every process, so that they stay together."""


class LaunchEnded(RuntimeError):
    """An error that the other processes may not know of, and would wait for ever: the whole launch has to end."""


class OtherLaunch(ConfigError):
    """A checkpoint of another kind of launch: one has whole weights, another shards."""


@dataclass(frozen=True)
class Processes:
    """count: how many; index: which of them this one is. channel: a group for objects, apart from the tensors'."""

    count: int = 1
    index: int = 0
    channel: Any = None

    @classmethod
    def joined(cls) -> Processes:
        """Those that a launcher started, once all of them have come; one, where there was no launcher.

        Raises ConfigError for ZeRO stage 3, whose parameters are empty outside of a pass, and for accelerate's older
        FSDP, whose shards cannot be told from whole weights.
        """
        if shards() and os.environ.get("FSDP_VERSION", "1") != "2":
            raise ConfigError(
                "accelerate launch --use_fsdp: only its second version is supported, add --fsdp_version 2"
            )
        if deepspeed() and (stage := DeepSpeedPlugin().zero_stage) == 3:
            raise ConfigError(
                f"DeepSpeed with zero_stage={stage} is not supported: take stage 1 or 2, or accelerate launch "
                "--use_fsdp --fsdp_version 2, which has the weights in shards too"
            )
        count = launched()
        if count == 1:
            return cls()
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        return cls(count, state.process_index, dist.new_group(backend="gloo", timeout=PATIENCE))

    @property
    def first(self) -> bool:
        return self.index == 0

    def part(self, batch_size: int) -> int:
        """Rows of a batch for each process: a batch is the same rows however many there are. Raises ConfigError."""
        if batch_size % self.count:
            raise ConfigError(
                f"training.batch_size={batch_size} does not divide by the {self.count} processes of this launch: it "
                "counts the rows of all of them together, so that a run is the same on any number"
            )
        return batch_size // self.count

    def told(self, value: Any = None) -> Any:
        """The value that the first process gives here; it waits for nobody, the others for it."""
        if self.count == 1:
            return value
        box = [value if self.first else None]
        dist.broadcast_object_list(box, src=0, group=self.channel)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value, group=self.channel)
        return values

    def lead(self, work: Callable[[], None], together: bool = False) -> None:
        """The first process does the work, the others wait for its end; `together`: all do it, each by itself.

        What fails in the first is raised as FirstFailed in all of them; where all work, and where there is only one, as
        it is.
        """
        if self.count == 1 or together:
            work()
            return
        fault: Exception | None = None
        if self.first:
            try:
                work()
            except Exception as error:  # whatever it is: the others must not wait for ever
                fault = error
        said = self.told(fault and f"{type(fault).__name__}: {fault}")
        if said:
            raise FirstFailed(said) from fault


def launched() -> int:
    """How many processes a launcher has started for this job; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def shards() -> bool:
    """Whether accelerate was told to shard models over the processes (accelerate launch --use_fsdp)."""
    return launched() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def kind() -> str:
    """How the launch keeps weights, which its checkpoints depend on."""
    return "fsdp" if shards() else "deepspeed" if deepspeed() else "whole"


def deepspeed() -> bool:
    """Whether accelerate was told to use DeepSpeed (accelerate launch --use_deepspeed)."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def leads() -> bool:
    """Whether this process is the first of its launch, or the only one."""
    return launched() == 1 or int(os.environ.get("RANK") or 0) == 0


ALONE = Processes()
