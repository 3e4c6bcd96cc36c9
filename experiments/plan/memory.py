"""Memory of each stage of an arm and bytes on disk, from counted parameters and one traced pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ctrl.layer import expanded_layers
from experiments.models.generation import BATCH
from experiments.models.head import inner
from experiments.models.precision import DTYPES
from experiments.plan.meter import Pass
from experiments.plan.shape import Shape
from experiments.training.config import TrainingConfig
from experiments.training.muon import NAME, matrices
from experiments.training.optimizer_fields import DEFAULT

Sharding = Literal["none", "zero2", "fsdp"]
FP32 = 4  # bytes
# bytes of an optimizer's state for each trained parameter, by parts of its name; the first that is in it counts
STATES = {
    "ademamix_8bit": 3.0, "ademamix": 12.0, "grokadamw": 12.0, "lion_8bit": 1.0, "lion": 4.0, "rmsprop_bnb_8bit": 1.0,
    "4bit": 1.0, "8bit": 2.0, "rmsprop": 4.0, "adagrad": 4.0, "adafactor": 0.0, "sgd": 0.0, "muon": 4.0, "adam": 8.0,
}  # fmt: skip
ADAM = 8.0


@dataclass(frozen=True)
class Setup:
    """How a step runs. rows: of a micro-batch on one device. micro_batches: of a step. state: bytes, see STATES."""

    rows: int
    micro_batches: int
    length: int
    state: float = ADAM
    devices: int = 1
    sharding: Sharding = "none"


def state_bytes(optim: str, optim_args: str = "") -> float:
    """Return the bytes of an optimizer's state for each trained parameter.

    torch's SGD and RMSprop have one more number each for a momentum and for `centered`.
    """
    size = next((size for part, size in STATES.items() if part in optim), ADAM)
    if optim not in ("sgd", "rmsprop"):
        return size
    given = dict(pair.partition("=")[::2] for pair in optim_args.replace(" ", "").split(","))
    centered = given.get("centered", "").lower() in ("true", "1", "yes")
    return size + FP32 * (float(given.get("momentum", 0)) > 0) + FP32 * centered


def mean_state(shape: Shape, arguments: Mapping[str, Any]) -> float:
    """Return `state_bytes` of an arm, which for Muon is a mean: what is none of its matrices has AdamW's state."""
    optim = str(arguments.get("optim", DEFAULT))
    size = state_bytes(optim, str(arguments.get("optim_args") or ""))
    if optim != NAME or not shape.counts.trained:
        return size
    ours = sum(p.numel() for p in matrices(shape.model)) / shape.counts.trained
    return size * ours + ADAM * (1 - ours)


def training(shape: Shape, one: Pass, setup: Setup) -> dict[str, float]:
    """Return the bytes of each part of a training step at its peak, on one device. They add up to the whole.

    Without micro-batches gradients grow while activations shrink: the peak of both together counts. gathered: with
    FSDP the largest layer twice (one is computed while the next arrives) and what is in no layer; else the buckets of
    gradients that processes sum.
    """
    count, whole = setup.devices, setup.devices > 1 and setup.sharding == "fsdp"
    of_states = count if setup.sharding != "none" else 1
    trained = FP32 * shape.counts.trained
    gradients = one.gradients / of_states
    gathered = 0.0
    if whole:
        gathered = FP32 * (2 * shape.counts.largest + shape.counts.outside)
    elif count > 1 and setup.sharding == "none":
        gathered = one.gradients
    activations = float(one.activations if setup.micro_batches > 1 or count > 1 else one.peak - one.gradients)
    in_step = trained * shape.method.tuning.step_copies  # activations are gone by then
    activations = max(activations, in_step / (count if whole else 1))
    return {
        "weights": (shape.bytes_of(True) + shape.bytes_of(False)) / (count if whole else 1),
        "gradients": gradients,
        "optimizer": setup.state * shape.counts.trained / of_states,
        "method": trained * shape.kept_copies / (count if whole else 1) + shape.base_copies,
        "activations": activations,
        "gathered": gathered,
    }


def stages(shape: Shape, step: float, parts: dict[str, float], setup: Setup) -> dict[str, float]:
    """Return the bytes on one device in each stage. step: the sum of `parts`, those of a training step.

    post-hoc: the whole model is in fp32, and is measured.
    """
    base, total, trained = (FP32 * n for n in (shape.counts.base, shape.counts.total, shape.counts.trained))
    whole = total
    base -= shape.packed_base
    total -= shape.packed_base
    held = parts["weights"] + parts["optimizer"] + parts["method"]
    layers = _layers(shape)
    return {
        "load": float(base),
        "base evaluation": base + shape.base_cast + _decoding(shape, setup.length, layers - _copies(shape)),
        "expansion": float(total),
        "training": step,
        "evaluation": held + shape.linear_cast() + _decoding(shape, setup.length, layers),
        "saving": held + trained,
        "post-hoc": whole
        + shape.base_cast * shape.counts.total / shape.counts.base
        + _decoding(shape, setup.length, layers),
    }


def disk(shape: Shape, setup: Setup, given: TrainingConfig) -> dict[str, float]:
    """Return the bytes of an arm on disk. checkpoints: the new one is written before the old one is deleted.

    given: says which trained weights stay, and where.
    """
    trained = float(FP32 * shape.counts.trained)
    one = trained + (setup.state + FP32 * shape.kept_copies) * shape.counts.trained
    kept = trained * DTYPES[given.keep_dtype].itemsize / FP32
    return {"checkpoints": 2 * one, "trained": (given.keep != "none") * kept, "MLflow": (given.keep == "last") * kept}


def _config(shape: Shape) -> Any:
    return inner(shape.model).config.get_text_config()


def _copies(shape: Shape) -> int:
    return len(expanded_layers(shape.model))


def _layers(shape: Shape) -> int:
    return int(_config(shape).num_hidden_layers) + _copies(shape)


def _decoding(shape: Shape, length: int, layers: int) -> float:
    """Bytes of replies of BATCH rows of `length` tokens: keys and values, and two tensors of their logits.

    If these do not fit, an evaluation on a GPU takes fewer rows at a time.
    """
    config = _config(shape)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 if shape.precision.bf16 else FP32
    return float(BATCH * (2 * size * layers * heads * width * length + 2 * FP32 * config.vocab_size))
