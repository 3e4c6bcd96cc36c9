"""Follow a training pass over fake tensors: bytes that exist at once, and FLOPs."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from experiments.models.head import inner
from experiments.plan.shape import Shape, faked
from experiments.training.chunked_nll import summed_nll
from experiments.training.lm_loss import ChunkedLoss, ModelLoss

ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"  # which torch's counter does not know
aten = torch.ops.aten


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a micro-batch, in bytes and FLOPs.

    peak: most bytes of activations and gradients at once, from no gradients on. activations: most bytes of all but the
    gradients at once; it is what each further micro-batch of a step needs on top of them. kept: activations at the end
    of the forward pass.
    """

    peak: int
    activations: int
    kept: int
    gradients: int
    flops: int


class StorageMeter(TorchDispatchMode):
    """Count the bytes of storages that were made inside the mode and still exist, and the FLOPs of its operations."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}  # of what exists, by storage
        self.gradients: dict[int, int] = {}
        self.live = self.peak = self.activations = self.flops = 0
        self.known = {_key(t) for t in (*model.parameters(), *model.buffers())}
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        self.flops += flops_of(func, args, kwargs or {}, out)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self.sizes or key in self.known:
            return
        self.sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        weakref.finalize(storage, self._freed, key).atexit = False
        self.peak = max(self.peak, self.live)
        self.activations = max(self.activations, self.live - sum(self.gradients.values()))

    def _freed(self, key: int) -> None:
        self.live -= self.sizes.pop(key)
        self.gradients.pop(key, None)

    def _gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            key = _key(parameter.grad)
            self.gradients[key] = self.sizes.get(key, 0)


class StaticLoss(ChunkedLoss):
    """The chunked loss of a batch whose tokens all carry loss: which ones do is no question to tensors without data."""

    def _summed(self, logits: Tensor, targets: Tensor, labelled: Tensor, weigh: Any, penalise: Any) -> Tensor:
        assert self.hidden is not None
        hidden = self.hidden.flatten(0, 1).clone()  # what a choice of tokens copies
        return summed_nll(hidden, self.head.weight, self.head.bias, targets.flatten())


def trace(shape: Shape, rows: int, length: int, padded: bool, checkpointing: str = "none") -> Pass:
    """Run one micro-batch of an arm over fake tensors. padded: its rows come with an attention mask."""
    with faked(shape, checkpointing):
        model = shape.model
        inputs = _inputs(rows, length, padded)
        with StorageMeter(model) as meter:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=shape.precision.bf16), _loss(shape).computed():
                loss = model(**inputs, use_cache=False).loss
            kept = meter.live
            loss.backward()
            del loss
            gradients = sum(meter.gradients.values())
        return Pass(meter.peak, meter.activations, kept, gradients, meter.flops)


def flops_of(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Return the FLOPs of products and of attention; of other operations 0."""
    packet = getattr(func, "_overloadpacket", func)
    if packet is aten.addmm_:
        return 2 * args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
    name = str(packet).removeprefix("aten.")
    if name.startswith(ATTENTION):
        q, k, v = args[1:4] if name.endswith("backward") else args[:3]
        forward = 2 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * (q.shape[3] + v.shape[3])
        return forward * 5 // 2 if name.endswith("backward") else forward
    return int(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0


def _inputs(rows: int, length: int, padded: bool) -> dict[str, Tensor]:
    ids = torch.zeros(rows, length, dtype=torch.long)
    mask = {"attention_mask": torch.ones_like(ids)} if padded else {}
    count = torch.ones((), dtype=torch.long)
    where = {"logits_to_keep": torch.arange(length), "shift_labels": ids.clone(), "num_items_in_batch": count}
    return {"input_ids": ids, "labels": ids.clone(), **where, **mask}


def _loss(shape: Shape) -> ModelLoss:
    head = inner(shape.model).get_output_embeddings()
    whole = shape.method.reads_logits or type(head) is not torch.nn.Linear or _scales(inner(shape.model).config)
    return ModelLoss() if whole else StaticLoss(shape.model)


def _scales(config: Any) -> bool:
    """Whether the model caps or scales its logits, by the names that architectures give this."""
    text = config.get_text_config()
    return any(getattr(text, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"))


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
