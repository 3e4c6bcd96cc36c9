"""The processes of one run: one, or as many as torchrun or accelerate started. Process 0 is the main process.

The main process alone writes: data, base records, markers of checkpoints, MLflow, the report. The others train with it,
each on its rows of every batch, and measure with it, the base too, each some of the items.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.distributed_c10d import _get_default_store
from transformers import PreTrainedModel

from ctrl.sharded import sharded
from experiments.common.errors import ConfigError, NotFinite
from experiments.common.machine_faults import of_the_machine
from experiments.models.lockstep import in_step
from experiments.models.sharing import Sharing, shared
from experiments.training.channel import COLLECTIVE_TIMEOUT, FAILED, AbortLaunch, Channel
from experiments.training.config import TrainingConfig
from experiments.training.launcher import check_launcher, world_size
from experiments.training.stopping import StopRequest

# of torch's own collectives, which cannot be renewed. No process may enter one while another works alone: it waits on
# the channel first. What is left is work that torch does between two of them, such as writing a sharded checkpoint
TENSOR_TIMEOUT = timedelta(minutes=30)

LAUNCHED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what a launcher sets next to WORLD_SIZE

M = TypeVar("M")
_joined = itertools.count()


class MainProcessError(RuntimeError):
    """Work of the main process, or a part of all's, failed; raised in every process, so that all go on together."""


class LaunchMismatch(ConfigError):
    """A checkpoint of another kind of launch: one kind has whole weights, another shards."""


@dataclass(frozen=True)
class Processes:
    """The processes of a launch, as one of them sees it: count, its index, and the channel to the others if any.

    Every process has to make the same calls of `broadcast`, `all_gather` and `on_main` in the same order. name: of what
    is passed or done, for the errors (`Channel`).
    """

    count: int = 1
    index: int = 0
    channel: Channel | None = None

    @classmethod
    @contextmanager
    def joined(cls, timeout: timedelta = COLLECTIVE_TIMEOUT) -> Iterator[Processes]:
        """Join the processes that a launcher started and yield them; one process without a launcher.

        timeout: see `Channel`. An error inside the block is passed on to the processes that wait for this one. Raises
        ConfigError for ZeRO stage 3, whose parameters are empty outside of a pass, and for accelerate's older FSDP,
        whose shards look like whole weights.
        """
        check_launcher()
        count = world_size()
        if count == 1:
            yield cls()
            return
        if missing := [name for name in LAUNCHED if name not in os.environ]:
            raise ConfigError(
                f"WORLD_SIZE={count}, but {', '.join(missing)} are not set: start the processes with torchrun or "
                "accelerate launch, or unset WORLD_SIZE"
            )
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=TENSOR_TIMEOUT)
        own: Any = _get_default_store()
        store = dist.PrefixStore(f"experiments/{next(_joined)}", own.clone())  # a connection of its own
        channel = Channel(store, state.process_index, count, timeout)
        try:
            yield cls(count, state.process_index, channel)
            channel.leave()
        except Exception as error:
            with suppress(AbortLaunch):
                channel.send(FAILED, f"{type(error).__name__}: {error}")
            raise
        finally:
            channel.close()

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def per_process(self, batch_size: int) -> int:
        """Rows of a batch for each process: a batch has the same rows for any count. Raises ConfigError."""
        if batch_size % self.count:
            raise ConfigError(
                f"training.batch_size={batch_size} does not divide by the {self.count} processes of this launch: it "
                "counts the rows of all of them together, so that a run is the same on any number"
            )
        return batch_size // self.count

    def cut(self, training: TrainingConfig) -> tuple[int, int]:
        """Return the rows of this process in a micro-batch, and how many of these a step has. Raises ConfigError."""
        return training.cut(self.per_process(training.batch_size))

    def broadcast(self, name: str, value: Any = None) -> Any:
        """Return the value that the main process passes here. It does not wait for the others."""
        return self.channel.broadcast(name, value) if self.channel else value

    def all_gather(self, name: str, value: Any = None) -> list[Any]:
        """Return the values of all processes in their order; without values, wait until all are here."""
        return self.channel.all_gather(name, value) if self.channel else [value]

    def on_main(self, name: str, work: Callable[[], object], together: bool = False) -> None:
        """Do work in the main process while the others wait for its end. together: all do it, then wait for all.

        An error of the main process is raised as MainProcessError in all of them. With `together`, or with one process,
        it is raised as it is.
        """
        if self.count == 1 or together:
            work()
            self.all_gather(name)
            return
        fault: Exception | None = None
        if self.is_main:
            try:
                work()
            except Exception as error:  # whatever it is: the others wait for this process
                fault = error
        reason = self.broadcast(name, fault and f"{type(fault).__name__}: {fault}")
        if reason:
            raise MainProcessError(reason) from fault

    def stops(self, step: int, asked: StopRequest) -> bool:
        """Return whether training ends after this step, because a process was asked to stop.

        All processes of a launch stop after the same step: the one after the request, which the others cannot finish
        before they see it, as each step sums gradients over all of them. All act as the one that was asked.
        """
        if self.channel is None:
            return bool(asked)
        at, number = self.channel.agreed("stop", (step + 1, asked.numbers[0]) if asked else None) or (step + 1, 0)
        if step < at:
            return False
        asked.numbers[:1] = [number]
        return True

    @contextmanager
    def sharing(self, model: Any, name: str) -> Iterator[None]:
        """Share what is measured inside the block among the processes (`models.sharing`). name: for the errors.

        A model in shards is measured in step; one that PEFT wraps is then measured whole by all, as its passes cannot
        be seen. An error that one process meets is raised as MainProcessError in all, NotFinite as it is.
        """
        if self.count == 1:
            yield
            return

        def gather(part: str, found: list[Any], fault: Exception | None) -> list[list[Any]]:
            return self._agreed(f"{name}, {part}", found, fault)

        with ExitStack() as opened:
            own, fault = None, None
            if not sharded(model):
                own = Sharing(self.index, self.count, gather)
            elif isinstance(model, PreTrainedModel):
                own = Sharing(self.index, self.count, gather, opened.enter_context(in_step(model)))
            opened.enter_context(shared(own))
            try:
                yield
            except (AbortLaunch, MainProcessError, NotFinite):  # known to all
                raise
            except Exception as error:
                fault = error
            self._agreed(name, None, fault)

    def _agreed(self, name: str, found: Any, fault: Exception | None) -> list[Any]:
        """Return what all processes found, or raise in all of them for the first that met an error."""
        reason: Any = fault and f"{type(fault).__name__}: {fault}"
        if isinstance(fault, NotFinite):
            reason = NotFinite()
        elif fault and of_the_machine(fault):  # no fault of the arm in any process: its class is not in its text
            reason = AbortLaunch(f"process {self.index}: {reason}")
        answers = self.all_gather(name, (found, reason))
        met = next((reason for _, reason in answers if reason), None)
        if isinstance(met, Exception):
            raise met from fault
        if met:
            raise MainProcessError(met) from fault
        return [found for found, _ in answers]

    def send(self, message: object) -> None:
        """Send a message from the main process to the others, which `receive` it by its class."""
        if self.channel:
            self.channel.send(type(message).__name__, message)

    def receive(self, *classes: type[M]) -> M:
        """Wait for the next message of the main process, which must be of one of these classes."""
        if self.channel is None:
            raise RuntimeError("a single process has nobody to receive messages from")
        message: M = self.channel.receive(*(cls.__name__ for cls in classes))
        return message


ALONE = Processes()
