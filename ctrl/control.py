"""Hold the state that the model and its expanded layers share: settings, and the forward pass that a thread runs.

A pass is never kept on a module or in `Control` itself: several threads may run one model (nn.DataParallel does).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctrl.config import ControlConfig
from ctrl.errors import warn
from ctrl.generation import Exchange
from ctrl.passes import ForwardPass
from ctrl.structure import branch_kinds
from ctrl.watch import DivergenceWatch, warn_also_compiled

RECORDS = ("output_attentions", "output_router_logits")  # arguments of a pass


class _OfThread(threading.local):
    """Each thread sees its own values."""

    current: ForwardPass | None = None  # the pass while it runs
    collected: Any = None  # ctrl.collect's Collected inside `ctrl.collect_divergence`


@dataclass
class Control(DivergenceWatch):
    """Data that the model and its expanded layers share."""

    config: ControlConfig
    layers: list[int]  # indices of the expanded layers
    total: int  # layers of the base model; the copy of layers[j] has cache slot total + j
    enabled: bool = True  # False inside ctrl.pretrained
    off: int = 0  # open blocks of ctrl.pretrained, in all threads
    alphas: list[list[Tensor]] = field(default_factory=list, repr=False)  # of the open blocks of ctrl.at_alpha
    lasting: list[Tensor | None] = field(default_factory=list, repr=False)  # the layers' alphas outside of these blocks
    batch_dim: int | None = None  # of hidden states, see ctrl.streams
    trained: set[str] = field(default_factory=set, repr=False)  # names of the parameters that expand trains
    before_peft: set[str] | None = field(default=None, repr=False)  # that trained before PEFT put adapters on the model
    logs: dict[int, Any] = field(default_factory=dict, repr=False)  # of the open blocks of ctrl.diagnostics, by id
    looked: bool = False  # whether a training pass has looked at what trains
    training: bytes = b""  # of each parameter of the model, whether it trained then
    watched: bool = False  # and watches its optimizer
    said: set[str] = field(default_factory=set, repr=False)  # see `say`
    references: list[weakref.ref[Any]] = field(default_factory=list, repr=False)  # what ctrl.reference has made
    starts: list[weakref.ref[Any]] = field(default_factory=list, repr=False)  # see `ctrl.initial`
    warned: bool = False  # whether the user was warned of a training pass without its divergence
    waiting: list[Callable[[], None]] = field(default_factory=list, repr=False)  # see `watch`
    compared: bool = False  # whether ctrl.pretrained has looked for changed weights
    told_of_cache: bool = False  # whether the user was warned of a checkpoint_pretrained that a cache prevents
    told_of_records: bool = False  # whether the user was warned that what the model records is of the frozen layers
    told_of_base: bool = False  # whether the user was warned of frozen weights that have changed
    fingerprint: str | None = None  # of the base's weights when it was expanded
    fingerprint_dtype: str | None = None  # and the dtype that they had
    part_prints: dict[str, str] = field(default_factory=dict, repr=False)  # of its norms and embeddings
    computes: dict[str, Any] = field(default_factory=dict, repr=False)  # of its config
    samples: dict[str, Tensor] | None = field(default=None, repr=False)  # of these weights, see ctrl.fingerprint
    packed: dict[str, Tensor] = field(default_factory=dict, repr=False)  # samples of its quantised weights
    sums: dict[str, tuple[str, int]] = field(default_factory=dict, repr=False)  # of these weights, see ctrl.sums
    loaded_settings: Exchange = field(default_factory=dict, repr=False)  # of generation, by ctrl.load -> the base's own
    base_settings: Exchange = field(default_factory=dict, repr=False)  # that ctrl.pretrained has put back -> those
    owner: weakref.ref[Any] | None = field(default=None, repr=False)  # the model that has the parts, see ctrl.expansion
    thread: _OfThread = field(default_factory=_OfThread, repr=False)
    unmasked: int = 0  # training passes without a mask that were searched for padding
    recomputes: bool = False  # as if `checkpoint_pretrained`, for the training of a bench or trainer
    seen: bool = False  # whether the gradient of `used` was seen
    used: Tensor | None = field(default=None, repr=False)  # 0, of which compiled passes make their loss, see `marked`

    def __deepcopy__(self, memo: dict[int, Any]) -> Control:
        self._warn_of_copying()
        return self.copied()

    def copied(self) -> Control:
        """Copy what belongs to the model.

        Passes hold graph tensors, which cannot be copied; log, warning and blocks belong to the original.
        """
        copied = Control(self.config, list(self.layers), self.total, self.enabled, batch_dim=self.batch_dim)
        copied.off, copied.trained, copied.before_peft = int(not self.enabled), self.trained, self.before_peft
        copied.fingerprint, copied.fingerprint_dtype = self.fingerprint, self.fingerprint_dtype
        copied.computes, copied.samples, copied.part_prints = self.computes, self.samples, self.part_prints
        copied.sums, copied.packed = self.sums, self.packed
        copied.loaded_settings, copied.base_settings = {**self.loaded_settings}, {**self.base_settings}
        if self.used is not None:
            copied.look_from(self.used.device)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        self._warn_of_copying()
        here = dict.fromkeys(("thread", "owner", "used"))  # the logs and the passes are those of this process
        empty: dict[str, Any] = {n: [] for n in ("alphas", "lasting", "references", "starts", "waiting")}
        return {**vars(self), **here, **empty, "logs": {}, "off": int(not self.enabled)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fresh = Control(state["config"], state["layers"], state["total"])  # of fields that an earlier version had not
        vars(self).update({**vars(fresh), **state, "thread": _OfThread()})
        self.look_from(torch.device("cpu"))

    def _warn_of_copying(self) -> None:
        if block := self.open_block:
            warn(
                f"this model is copied inside {block}, and the copy stays as it is there for ever: copy or pickle it "
                "outside of the block. ctrl.reference(model) makes a plain model of the base",
                stacklevel=3,
            )

    @property
    def open_block(self) -> str:
        """The name of a block that is open, of any thread; empty if none is."""
        return "ctrl.pretrained" if self.off else "ctrl.at_alpha" if self.alphas else ""

    @property
    def mode(self) -> tuple[Any, ...]:
        """What passes compute: those of two modes cannot share keys and values."""
        fixed = (self.alphas[-1] if self.alphas else self.lasting) if self.enabled else ()
        return self.thread, self.enabled, [alpha.item() for alpha in fixed if alpha is not None]  # the first: of whom

    @property
    def following_block(self) -> str:
        """The name of an open block that follows the passes of this expansion alone; empty if none is."""
        if self.thread.collected is not None:
            return "ctrl.collect_divergence"
        return "ctrl.diagnostics" if self.logs else ""

    @property
    def current(self) -> ForwardPass | None:
        """The forward pass that this thread runs."""
        return self.thread.current

    @property
    def compares(self) -> bool:
        """Whether any expanded layer has a divergence: one that mixes two branches, if the config names one."""
        return self.config.divergence != "none" and "concat" in branch_kinds(self.config, len(self.layers))

    @property
    def adds(self) -> bool:
        """Whether the loss contains a divergence."""
        return self.compares and self.config.divergence_weight > 0

    def begin(self, current: ForwardPass) -> None:
        """Start a pass of this thread, which keeps its divergences inside `ctrl.collect_divergence`."""
        self.thread.current = current
        if self.thread.collected is not None and self.enabled:
            self.thread.collected.add(current)

    def end(self) -> None:
        """End this thread's pass."""
        if self.thread.current is not None:
            self.thread.current.running = False
        self.thread.current = None

    def say(self, message: str, stacklevel: int) -> None:
        """Warn once for each model of what may be found in each training, or each block."""
        if message not in self.said:
            self.said.add(message)
            warn(message, stacklevel=stacklevel + 1)

    def look(self, model: Any = None) -> None:
        """Let the model look at what trains, in the first pass of a training: trainers may run its decoder alone.

        model: given at the start of each of its passes, of which one after a part was unfrozen or frozen looks again.
        """
        if torch.compiler.is_compiling():
            return
        if model is not None:
            before, self.training = self.training, bytes(p.requires_grad for p in model.parameters())
            self.looked &= before == self.training
        if self.looked:
            return
        model = self.owner() if model is None and self.owner else model
        if model is not None:
            model.look()

    def look_again(self) -> None:
        """Look at the next training pass as at the first one: it may be one of another training."""
        self.looked = self.watched = self.warned = self.seen = False
        self.unmasked = 0

    def warn_of_kept_activations(self) -> None:
        """Warn once of a training pass with a cache, in which no activations are computed again."""
        if self.config.checkpoint_pretrained and not self.told_of_cache:
            self.told_of_cache = True
            warn_also_compiled(
                "checkpoint_pretrained has no effect in a training pass with a cache, which would be filled twice: "
                "pass use_cache=False to the model, or set model.config.use_cache=False (Trainer does)"
            )

    def warn_of_records(self, given: dict[str, Any], config: Any) -> None:
        """Warn once if a pass records attentions or router logits: those of copies are not among them."""
        asked = [name for name in RECORDS if given.get(name, getattr(config, name, False))]
        if asked and self.enabled and not self.told_of_records and not torch.compiler.is_compiling():
            self.told_of_records = True
            warn_also_compiled(
                f"{' and '.join(asked)}: of expanded layers the model returns those of the pretrained layers, and none "
                "of the copies. To read them of what was trained, take the plain model of ctrl.merge_back (exact at "
                "alpha=1), or hooks on the copies (layer.expanded)"
            )

    def warn_of_references(self, use: str) -> None:
        """Warn if a model of ctrl.reference shares the weights of the base, which train from now on."""
        if any(made() is not None for made in self.references):
            warn(
                f"{use} makes the weights of the base trainable, and a model of ctrl.reference shares them: if you "
                "train them, the reference changes too. A copy.deepcopy of the reference has weights of its own",
                stacklevel=3,
            )
