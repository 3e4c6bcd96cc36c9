"""Change trained weights without training: WiSE-FT, LiNeS, merging back, alpha dials, task vectors, ensembles."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

import ctrl
from ctrl.control_model import ControlModel
from ctrl.gap import MergeGap
from ctrl.layer import expanded_layers
from ctrl.structure import decoder_layers
from ctrl.switches import set_alpha
from experiments.common.errors import ConfigError
from experiments.config import run_config
from experiments.methods.saving import check_same_base, is_peft, tied_modules
from experiments.models.quantised import dequantise
from experiments.posthoc.checks import check_arm, check_operation
from experiments.posthoc.ensemble import together
from experiments.posthoc.parked import Noted, Parked
from experiments.runs.trained import TRAINED, load_arm, load_trained

# names of what is before the first layer: modules are not in the order in which they run (OPT's last norm)
BEFORE = re.compile(
    r"embed(?!_out|ding_norm)|(?:^|\.)(?:wte|wpe|w|project_in|input_hidden_states_(?:scale|bias))(?:\.|$)"
)
Figures = dict[str, float]
Batches = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class TrainedArm:
    """A trained arm of a run. others: folders of arms to add. batches: general text, for a merged model's gap."""

    run: Path
    name: str
    learning_rate: float
    others: Sequence[Path] = ()
    batches: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.run / "arms" / f"{self.name}-{self.learning_rate:g}"

    def base(self) -> PreTrainedModel:
        """Load the base model. Raises DamagedError if it is not the one that the arm was trained from."""
        base = run_config(self.run).load_base()[0]
        check_same_base(base, self.folder / TRAINED)
        return base

    def trained(self) -> PreTrainedModel:
        return load_trained(self.run, self.name, self.learning_rate)

    def base_in_floats(self) -> PreTrainedModel:
        return dequantise(self.base())

    def in_floats(self) -> PreTrainedModel:
        """The trained model for operations on weights: over a quantised base with the floats it computes with."""
        return load_arm(self.base_in_floats(), self.folder) if run_config(self.run).quantised else self.trained()


def wise(arm: TrainedArm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    """Mix base and tuned model as (1 - alpha) base + alpha tuned: WiSE-FT (arXiv 2109.01903).

    An expanded or adapted model is made plain first.
    """
    check_arm("wise", arm.folder, alpha)
    tuned = _parked(arm.in_floats(), arm)
    return mixed(arm.base_in_floats(), [(float(alpha or 0), tuned)]), {}


def lines(arm: TrainedArm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    """Scale the change of weights linearly with depth: base + s_l (tuned - base), LiNeS (arXiv 2410.17146).

    s_l = alpha + (1 - alpha) l / (L - 1) in layer l = 0 ... L - 1; alpha for what is before the layers (embeddings), 1
    for what is after them (last norm, a head of its own). An expanded or adapted model is made plain first.
    """
    check_arm("lines", arm.folder, alpha)
    tuned = _parked(arm.in_floats(), arm)
    base = arm.base_in_floats()
    return mixed(base, [(depth_shares(base, float(alpha or 0)), tuned)]), {}


def depth_shares(model: PreTrainedModel, first: float) -> dict[str, float]:
    """Return a share by name of parameter: `first` before the first layer, then rising linearly to 1 in the last."""
    layers = decoder_layers(model)
    part = {id(p): i / max(len(layers) - 1, 1) for i, layer in enumerate(layers) for p in layer.parameters()}
    names = {n: part.get(id(p), 0.0 if BEFORE.search(n) else 1.0) for n, p in model.named_parameters()}
    return {name: first + (1 - first) * depth for name, depth in names.items()}


def merge(arm: TrainedArm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    """Merge an expanded model back at alpha (default: its own) and measure the gap; or fold an adapter in."""
    check_arm("merge", arm.folder, alpha)
    model = arm.in_floats()
    if not isinstance(model, ControlModel):
        return plain_model(model), {}
    merged, gap = merged_in_place(model, alpha, arm.batches)
    return merged, {"merge_gap_kl": gap.kl, "merge_gap_logits": gap.max_logit_difference}


def task_vectors(arm: TrainedArm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    """Add task vectors: base + alpha * sum_i (theta_i - base) over this arm and the others (arXiv 2212.04089).

    Without others the vector of this arm is scaled, also beyond its weights (alpha > 1) or against them (alpha < 0).
    """
    check_operation("task_vectors", arm.folder, [] if alpha is None else [alpha], arm.others)
    vectors = [_parked(arm.in_floats(), arm), *(_parked(model, arm) for model in _others("task_vectors", arm))]
    weight = 1.0 if alpha is None else alpha
    return mixed(arm.base_in_floats(), [(weight, vector) for vector in vectors]), {}


def ensemble(arm: TrainedArm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    """Predict with this arm and the others together, or with this arm and the base if there are no others.

    The largest probability that one of them gives a token counts, as in LAE (arXiv 2303.10070), whose two models are an
    arm and its average over steps (`ema`). All of them are in memory at once, which no other operation needs.
    """
    check_operation("ensemble", arm.folder, [] if alpha is None else [alpha], arm.others)
    own, *others = [_unadapted(model) for model in [arm.trained(), *_others("ensemble", arm)]]
    return together(own, others or [arm.base()]), {}


def _others(operation: str, arm: TrainedArm) -> Iterator[PreTrainedModel]:
    """Load the other arms one by one."""
    for folder in arm.others:
        base = arm.base() if operation == "ensemble" else arm.base_in_floats()
        check_same_base(base, folder / TRAINED)
        yield load_arm(base, folder)


def dial(arm: TrainedArm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    """Set alpha of an expanded model to one value in every layer and for every token (`ctrl.at_alpha`)."""
    check_arm("dial", arm.folder, alpha)
    model = arm.trained()
    set_alpha(model, float(alpha or 0))
    return model, {}


def dial_depth(arm: TrainedArm, alpha: float | None) -> tuple[PreTrainedModel, Figures]:
    """Scale each copy's own alpha with depth: by s_j = alpha + (1 - alpha) j / (n - 1) in copy j = 0 ... n - 1.

    As LiNeS (arXiv 2410.17146), but on outputs: a + s_j alpha_j (b - a), with weights as they are. At 1 it is the arm.
    Raises ConfigError for an alpha that depends on the token.
    """
    check_arm("dial_depth", arm.folder, alpha)
    model = arm.trained()
    gates = [layer.interpolation for layer in expanded_layers(model)]
    if any(gate is not None and gate.per_token for gate in gates):
        raise ConfigError("dial_depth scales each layer's alpha, but here alpha depends on the token: use dial")
    first, last = float(alpha or 0), max(len(gates) - 1, 1)
    shares = [first + (1 - first) * j / last for j in range(len(gates))]
    own = [0.0 if gate is None else gate.local_alpha() for gate in gates]
    set_alpha(model, [share * one for share, one in zip(shares, own, strict=True)])
    return model, {}


OPERATIONS: dict[str, Callable[[TrainedArm, float | None], tuple[PreTrainedModel, Figures]]] = {
    "wise": wise,
    "lines": lines,
    "merge": merge,
    "dial": dial,
    "dial_depth": dial_depth,
    "task_vectors": task_vectors,
    "ensemble": ensemble,
}


def _parked(model: PreTrainedModel, arm: TrainedArm) -> Parked:
    """Put the weights of a model, made plain, into a file. The caller keeps no other reference to the model."""
    return Parked(dict(plain_model(model, arm.batches).named_parameters()))


def merged_in_place(model: ControlModel, alpha: float | None, batches: Batches) -> tuple[PreTrainedModel, MergeGap]:
    """Merge an expanded model back, in its own memory, and compare it with what it was. alpha: default is its own."""
    before = Noted(model, batches)
    gates = gate_batches(model, batches) if alpha is None else None
    merged = ctrl.merge_back(model, alpha, gates, in_place=True).eval()
    return merged, ctrl.merge_gap(before, merged, batches)


Shares = float | Mapping[str, float]  # alpha of all parameters, or of each by name


@torch.no_grad()
def mixed(base: PreTrainedModel, parts: Sequence[tuple[Shares, Mapping[str, Tensor]]]) -> PreTrainedModel:
    """Set theta = base + sum_i alpha_i (theta_i - base) in place. Exact for one part at alpha 0 or 1.

    parts: pairs of alpha and weights by name. Raises ConfigError if a model has other weights than the base.
    """
    shapes = {name: p.shape for name, p in base.named_parameters()}
    for _, tuned in parts:
        own = tuned.shapes() if isinstance(tuned, Parked) else {name: p.shape for name, p in tuned.items()}
        if own != shapes:
            raise ConfigError(
                "the trained model has other weights than its base (stacked copies?): they cannot be mixed"
            )
    for name, p in base.named_parameters():
        start = p.clone()
        first, *rest = (
            torch.lerp(start, tuned[name].to(start.device), share if isinstance(share, float) else share[name])
            for share, tuned in parts
        )
        p.copy_(first)
        for other in rest:
            p.add_(other - start)
    return base


def plain_model(model: PreTrainedModel, batches: Batches = ()) -> PreTrainedModel:
    """Return a model of the base's class: merge an expanded one back (see `gate_batches`), fold an adapter in."""
    if isinstance(model, ControlModel):
        return ctrl.merge_back(model, batches=gate_batches(model, batches), in_place=True)
    return _unadapted(model)


def _unadapted(model: PreTrainedModel) -> PreTrainedModel:
    """Fold an adapter in. Raises ConfigError for one on a layer that shares its weight with another."""
    if not is_peft(model):
        return model
    if tied := tied_modules(model):
        raise ConfigError(
            f"the adapter on {tied[0].rpartition('.')[2]} cannot be merged: its weight is another layer's too (tied "
            "embeddings), which it would change as well. Adapt other layers, or merge onto a base without tied weights"
        )
    return model.merge_and_unload()  # type: ignore[operator]


def gate_batches(model: ControlModel, batches: Batches) -> Batches | None:
    """Return the text on which alpha is measured if it depends on the token (dlerp, dlerpin), else None.

    Such a gate has weights besides theta, so sigmoid(theta) is not its mean.
    """
    layers = [layer.interpolation for layer in expanded_layers(model) if layer.interpolation is not None]
    return batches if batches and any(layer.per_token for layer in layers) else None
