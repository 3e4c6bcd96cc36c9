"""Measure the cost of training: tokens, seconds and peak memory of the optimiser steps alone."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import TrainerCallback

from experiments.common.files import parse_json, write_json

METER = "meter.json"


class PeakMemory:
    """Measure the peak memory of optimiser steps in bytes: of the GPU if there is one, else of the process (sampled).

    Evaluation needs the same memory for every method, so the sampling pauses outside of steps.
    """

    def __init__(self, interval: float = 0.02) -> None:
        self.peak, self.in_step, self._stop = 0, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(interval,), daemon=True)

    def __enter__(self) -> PeakMemory:
        self.forget()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self.in_step.set()
        self._thread.join()

    def forget(self) -> None:
        """Do not count memory that earlier work (loading, an evaluation) left to the allocator.

        Not called at every step: pages that were given back must be faulted in again, which made steps a third slower.
        """
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL("libc.so.6").malloc_trim(0)

    def begin(self) -> None:
        self.in_step.set()

    def end(self) -> None:
        self.in_step.clear()
        if torch.cuda.is_available():
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())

    def _sample(self, interval: float) -> None:
        process = psutil.Process()
        while self.in_step.wait() and not self._stop.wait(interval):
            if not torch.cuda.is_available():
                self.peak = max(self.peak, process.memory_info().rss)


class Meter(TrainerCallback):
    """Count tokens, seconds and peak memory of optimiser steps alone; evaluation and checkpoints are not training.

    Kept in each checkpoint, so that a resumed arm reports the cost of all its steps.
    """

    def __init__(self) -> None:
        self.tokens, self.seconds, self.begun = 0, 0.0, 0.0
        self.memory = PeakMemory()
        self._last = (0, 0.0)

    def rates(self) -> dict[str, float]:
        """Return tokens_seen (all steps so far) and tokens_per_s (the steps since the last call)."""
        tokens, seconds = self.tokens - self._last[0], self.seconds - self._last[1]
        self._last = (self.tokens, self.seconds)
        return {"tokens_seen": float(self.tokens), "tokens_per_s": tokens / seconds} if seconds > 0 else {}

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.memory.begin()
        self.begun = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self.begun
        self.memory.end()

    def save(self, folder: Path) -> None:
        write_json(folder / METER, {"tokens": self.tokens, "seconds": self.seconds, "peak": self.memory.peak})

    def load(self, folder: Path) -> None:
        values = parse_json((folder / METER).read_text())
        self.tokens, self.seconds, self.memory.peak = values["tokens"], values["seconds"], values["peak"]
        self._last = (self.tokens, self.seconds)


def real_tokens(inputs: dict[str, Any]) -> Tensor | int:
    """Count the tokens of a batch without its padding. A count of marks stays on their device, unread.

    A mask marks it, or the documents of packed conversations; packed documents (cpt) have none.
    """
    marks = inputs.get("attention_mask", inputs.get("documents"))
    return inputs["input_ids"].numel() if marks is None else (marks != 0).sum()
