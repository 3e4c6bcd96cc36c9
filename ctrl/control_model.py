"""ControlModel: the mixin that adds the divergence to the loss of a causal LM."""

from __future__ import annotations

import functools
import inspect
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ctrl.adapters import HoldsAdapters, peft_adapter
from ctrl.cache import add_paged_slots, check_paged
from ctrl.card import CARD_FILE, card, model_tags
from ctrl.checkpoint import read_config, write_checkpoint
from ctrl.classes import made_once
from ctrl.control import Control
from ctrl.errors import ConfigError, warn
from ctrl.hub import upload
from ctrl.layer import expanded_layers
from ctrl.losses import loss_is_a_mean, reads_total
from ctrl.mark import Marked
from ctrl.outputs import tensors, with_loss
from ctrl.passes import ForwardPass, mean_divergence, unpacked_ids
from ctrl.patches import CopiedAlone
from ctrl.quantised import keep_as_in_training
from ctrl.sharded import is_sharded
from ctrl.training import check_gradients, warn_of_unmarked_padding, warn_of_what_trains
from ctrl.watch import UNUSED

EARLY_EXIT = "assistant_early_exit"
UPLOAD = ("repo_id", "token", "private", "commit_message", "revision", "create_pr")


class ControlModel(CopiedAlone, HoldsAdapters, Marked):
    """Mixin in front of a causal LM's own class: adds the divergence to its loss, and saves only what was trained."""

    control: Control
    _forward_names: tuple[str, ...]

    def _forward(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute loss = lm_loss + divergence_weight * divergence if labels are given, else run the base class only.

        divergence: mean over expanded layers of the mean over real tokens. With num_items_in_batch (Trainer) both
        parts are sums over sequences, so accumulated gradients equal those of one large batch. Inside
        `ctrl.collect_divergence` the loss is the LM loss, since the caller adds the divergence. documents: an argument
        for packed rows, see `ForwardPass`; the base class does not get it.
        """
        control = self.control
        kwargs.update(zip(self._forward_names, args, strict=False))
        documents = kwargs.pop("documents", None)
        mask, labels, total = (kwargs.get(name) for name in ("attention_mask", "labels", "num_items_in_batch"))
        own = getattr(self, "_loss_function", None)  # that the user has set
        total = total if own is None or reads_total(own) else None
        marks = {"documents": documents, "positions": kwargs.get("position_ids")}
        current = ForwardPass(mask, labels, total=total, ids=unpacked_ids(kwargs), **marks)
        collected = control.thread.collected is not None
        own_loss = control.enabled and current.labels is not None and not collected
        if own_loss:
            current.divergences = {}
        missed = not own_loss and torch.is_grad_enabled() and not collected
        if self.training and torch.is_grad_enabled():
            control.look(self)
            if own_loss:
                warn_of_unmarked_padding(self, current)
        if missed and self.training:
            control.warn_of_loss_without("without labels")
        control.warn_of_records(kwargs, self.config)
        check_paged(control, kwargs.get("cache"))
        control.begin(current)
        try:
            out = base(self, **kwargs)
        finally:
            control.end()
        if own_loss:
            return self._with_divergence(out, current)
        if missed:
            control.watch(tensors(out), "without labels")
        if collected:
            current.loss = out[0] if isinstance(out, tuple) else getattr(out, "loss", None)
            control.watch_collected(current, tensors(out))
        return out

    def _with_divergence(self, out: Any, current: ForwardPass) -> Any:
        """Add the divergence of the pass to its loss."""
        config, lm_loss = self.control.config, out[0] if isinstance(out, tuple) else out.loss  # it may be set later on
        check_gradients(self, current)
        divergence = mean_divergence([current], config.divergence_tokens, lm_loss.device, current.total)
        if divergence is None and not self.control.compares:
            divergence = lm_loss.new_zeros((), dtype=torch.float32)
        if divergence is None or config.divergence_weight == 0:
            return with_loss(out, lm_loss, divergence)
        self.control.watch(tensors(out), UNUSED, divergence)
        loss = lm_loss + config.divergence_weight * divergence
        return with_loss(out, self.control.marked(loss) if torch.compiler.is_compiling() else loss, divergence)

    look = warn_of_what_trains  # in a training pass of the model, or of its decoder

    def train(self, mode: bool = True) -> Any:
        """Set the mode as torch does; quantised matrices stay in train mode, see `keep_as_in_training`."""
        self.control.looked &= self.training or not mode  # after an evaluation, the next training pass looks again
        super().train(mode)
        keep_as_in_training(self)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Move or convert the model as torch does, and what belongs to it."""
        moved = super()._apply(*args, **kwargs)
        self.control.look_again()  # a trainer moves the model as it begins
        self.control.look_from(next(self.parameters()).device)
        return moved

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Resize as the base class does; warn that new rows are frozen as all of the base is."""
        model: Any = self
        before = model.config.get_text_config(decoder=True).vocab_size
        embeddings = super().resize_token_embeddings(*args, **kwargs)  # type: ignore[misc]
        if (now := model.config.get_text_config(decoder=True).vocab_size) != before:
            warn(
                f"the embeddings now have {now} rows in place of {before}, frozen as all of the base: new tokens keep "
                "the values that they start with, and ctrl.load refuses the base without them. Resize the base before "
                "ctrl.expand; if new rows are to train, call model.get_input_embeddings().requires_grad_(True) then",
                stacklevel=2,
            )
        return embeddings

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the base class. Raises ConfigError for assistant_early_exit, which stops between the layers."""
        given = [config for config in (*args, *kwargs.values(), self.generation_config) if hasattr(config, EARLY_EXIT)]
        if kwargs.get(EARLY_EXIT) or any(getattr(config, EARLY_EXIT) for config in given):
            self._refuse_if_enabled(f"{EARLY_EXIT} counts the layers in the cache, which has more for the copies")
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Start the base class's continuous batching (`generate_batch` too), with slots for the copies in its cache."""
        return add_paged_slots(super().init_continuous_batching(*args, **kwargs))  # type: ignore[misc]

    def _refuse_if_enabled(self, reason: str) -> None:
        if self.control.enabled:
            raise ConfigError(f"{reason}: generate with the plain model of ctrl.merge_back, or without it")

    @property
    def is_quantized(self) -> bool:
        """False over a quantised base too: transformers' Trainer refuses such a model, but the copies are in floats."""
        return False

    def save_pretrained(
        self,
        save_directory: Any,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write the folder of `ctrl.save`. The base class's folder would load as a plain, silently different model.

        push_to_hub: upload it too, to kwargs' repo_id (default: the folder's name); token, private, commit_message,
        revision and create_pr are as in transformers. The weights are always one file: max_shard_size has no effect.
        """
        if unknown := [name for name in ("variant", "distributed_checkpoint") if kwargs.get(name)]:
            raise ConfigError(f"the folder of an expansion has no {unknown[0]}: call save_pretrained without it")
        sharded = state_dict is None and any(map(is_sharded, self.state_dict().values()))  # then every process calls
        if sharded or is_main_process:
            folder = write_checkpoint(bare_expanded(self), save_directory, state_dict)
        if push_to_hub and is_main_process:
            given = {name: kwargs[name] for name in UPLOAD if kwargs.get(name) is not None}
            upload(folder, **{"repo_id": folder.absolute().name, **given})

    def push_to_hub(
        self, repo_id: str, *, tags: str | Sequence[str] = (), max_shard_size: Any = None, **kwargs: Any
    ) -> Any:
        """Upload the folder of `ctrl.save` with its model card. max_shard_size has no effect.

        tags: for the card, next to those of `add_model_tags`. kwargs: token, private, commit_message,
        commit_description, revision and create_pr, as in transformers.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = write_checkpoint(bare_expanded(self), name)
            meta, more = read_config(folder), [tags] if isinstance(tags, str) else tags or ()
            text = card(meta["base"], meta["control"], [*model_tags(self), *more])
            (folder / CARD_FILE).write_text(text, encoding="utf-8")
            return upload(folder, repo_id, **kwargs)


@made_once
def control_class(cls: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Make a subclass of cls with the divergence in its loss. It keeps the name and the forward signature, which
    Trainer, generate and FSDP read."""

    @functools.wraps(cls.forward)
    def forward(self: ControlModel, *args: Any, **kwargs: Any) -> Any:
        return self._forward(cls.forward, *args, **kwargs)

    names = tuple(inspect.signature(cls.forward).parameters)[1:]
    members = {
        "forward": forward,
        "_forward_names": names,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    if loss_is_a_mean(cls):
        members["accepts_loss_kwargs"] = False  # Trainer then passes no total, and divides loss and divergence alike
    return type(cls.__name__, (ControlModel, cls), members)


def require_expanded(model: nn.Module) -> ControlModel:
    """Return the expanded model: the given one, or the one in a wrapper (DDP, PEFT, torch.compile).

    Raises ConfigError if there is none, or more than one.
    """
    found = list(dict.fromkeys(_expanded_in(model))) if isinstance(model, nn.Module) else []
    if len(found) > 1:
        raise ConfigError(
            f"{type(model).__name__} holds {len(found)} expanded models (a policy and its reference or value model, "
            "say): give ctrl the one that is meant"
        )
    if not found:
        raise ConfigError(f"{type(model).__name__} is not expanded: call ctrl.expand(model, config) first")
    return found[0]


def _expanded_in(module: nn.Module) -> Iterator[ControlModel]:
    """Find expanded models without a walk through what they hold."""
    if isinstance(module, ControlModel):
        yield module
        return
    for child in module.children():
        yield from _expanded_in(child)


def bare_expanded(model: nn.Module) -> ControlModel:
    """Return the expanded model without its wrapper. Raises ConfigError if it holds PEFT adapters.

    Warns of a wrapper that trains weights of its own, such as a head.
    """
    expanded = require_expanded(model)
    own: set[nn.Module] = set()
    if expanded.control.config.expanded == "lora":  # low-rank copies are adapters too
        own = {module for layer in expanded_layers(expanded) for module in layer.expanded.modules()}
    if (found := peft_adapter(model, own)) is not None:
        raise ConfigError(
            f"{found} holds a PEFT adapter on top of the expanded model: call merge_and_unload() first. ctrl.save then "
            "writes what the adapters changed outside the copies too"
        )
    own_weights = {id(p) for p in expanded.parameters()}
    outside = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in own_weights]
    if outside:
        expanded.control.say(
            f"{len(outside)} tensors of {type(model).__name__} that train are outside of the expanded model (first: "
            f"{outside[0]}): ctrl saves, merges and exports the model alone, so save these yourself",
            stacklevel=3,
        )
    return expanded
