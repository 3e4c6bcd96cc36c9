"""ControlConfig: describe an expansion, check it, and convert it to plain values (saved with the weights)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ctrl.divergence import DIVERGENCES
from ctrl.errors import ConfigError, shown, unknown_name, warn
from ctrl.interpolation import INTERPOLATIONS

Structure = Literal["concat", "stack", "hybrid"]
Alpha = Literal["fixed", "learned"]
MAX_RANK = 2**16  # more than the width of any model: a mistyped number
MAX_WEIGHT = 1e9  # of a divergence; the loss in fp32 overflows with much larger ones
LEAST_SLOPE = 1e-6  # of sigmoid at a learned alpha: with less it never moves, in fp32 not at all
# fields about the two outputs of a layer, and those of them about their divergence
OF_DIVERGENCE = (
    "divergence_weight", "margin", "scale_by_alpha", "detach_alpha", "detach_pretrained", "divergence_tokens",
)  # fmt: skip
OF_TWO_OUTPUTS = ("interpolation", "alpha", "alpha_start", "divergence", *OF_DIVERGENCE)
ADDED_LATER = ("copies_dtype", "checkpoint_pretrained")


@dataclass(frozen=True)
class ControlConfig:
    """Describe how a pretrained model is expanded (Control LLM, arXiv 2501.10979, sections 3.1-3.3).

    Raises ConfigError that lists every wrong value, one per line.

    structure: `concat` runs a trainable copy in parallel with a layer and mixes the two outputs, `stack` runs it after
        the layer (LLaMA Pro), `hybrid` alternates stack, concat, stack, ...
    layers: number of layers to expand (evenly spread, see `ctrl.structure.place`), or their indices; -1 is the last.
    interpolation: mixes the two outputs; a name in `ctrl.interpolation.INTERPOLATIONS`.
    alpha: `learned` trains the scalar theta in alpha = sigmoid(theta), `fixed` does not. The other parameters of an
        interpolation (a gate, a matrix) always train, except those that get a gradient only from a divergence of
        hidden states: without such a divergence they are frozen.
    alpha_start: alpha before training, in [0, 1]; 0, 1 and what is next to them are excluded if alpha is learned. At 0
        no copy ever gets a gradient, and with moe none below 0.5 unless the gate differs much between tokens.
    divergence: distance between the two outputs, added to the loss; a name in `ctrl.divergence.DIVERGENCES`.
    divergence_weight: factor of the divergence in the loss, from 0 to 1e9 (the paper uses 1). With 0 none is computed,
        except for `ctrl.diagnostics`.
    margin: cosine distances below it add nothing (cosine and norm divergences).
    scale_by_alpha: multiply each token's divergence by its own alpha (the paper's adaptive variant). A learned
        alpha can then shrink its own penalty; `detach_alpha` stops that gradient.
    detach_alpha: stop the gradient of the scaled divergence into alpha.
    detach_pretrained: stop the gradient of the divergence into the pretrained branch, whose input depends on the
        expanded layers below it.
    divergence_tokens: tokens that count. `real`: all except padding, which a mask (batch, seq) marks; all tokens if the
        mask has another form (4-D, or a dict). `labels`: tokens with a label. Under Trainer, which passes the number of
        labelled tokens of an optimiser step, a sequence weighs as much as its share of them, as in the LM loss;
        without that number all tokens weigh the same.
    expanded: `full` copies every weight, `lora` adds low-rank adapters to the pretrained weights (needs peft). If the
        base is quantised, full copies are in floats and start from the values that the quantised layers compute with.
    lora_rank: rank of the adapters.
    copies_dtype: type of the trained weights over a base in bf16 or fp16. `fp32`: they are fp32, read as rounded to the
        base's type while they compute, so the start equals the base; bytes per copied parameter with AdamW: weight 4,
        its rounded value 2 (kept for the backward pass), gradient 4, moments 8, together 18. `base`: all in the base's
        type, 8 bytes together; at rates of 1e-5 most weights then never change, since steps are smaller than the
        distance to the next number. A run of the bench trains in fp32, and refuses `base`.
    checkpoint_pretrained: run the frozen layer of each expanded one a second time in the backward pass, in place of
        keeping its activations. Gradients are the same. Needs use_cache=False, as Trainer sets it: a pass with a cache
        keeps them. Under gradient checkpointing of whole layers it has no effect.
    norm_mix: c in [0, 1]; the copy's own norms, not those inside its attention or MLP, become c x + (1 - c) norm(x).
        0 keeps them as they are. `learned` gives each a factor f of its own, c = clamp(2 sigmoid(f) - 1, 0, 1), which
        starts at 0 (published checkpoints: interpolation_norm_alpha -1).
    """

    structure: Structure = "concat"
    layers: int | Sequence[int] = 8
    interpolation: str = "lerp"
    alpha: Alpha = "fixed"
    alpha_start: float = 0.5
    divergence: str = "mse"
    divergence_weight: float = 1.0
    margin: float = 0.0
    scale_by_alpha: bool = False
    detach_alpha: bool = False
    detach_pretrained: bool = False
    divergence_tokens: Literal["real", "labels"] = "real"
    norm_mix: float | Literal["learned"] = 0.0
    expanded: Literal["full", "lora"] = "full"
    lora_rank: int = 8
    copies_dtype: Literal["fp32", "base"] = "fp32"
    checkpoint_pretrained: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.layers, Sequence) and not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))
        if self.norm_mix == "alpha":
            warn(
                "norm_mix='alpha' is now 'learned': each relaxed norm has a factor of its own, as in published "
                "checkpoints, in place of the layer's alpha. Write norm_mix='learned'",
                stacklevel=3,
            )
            object.__setattr__(self, "norm_mix", "learned")
        faults = [*_choice_faults(self), *_number_faults(self), *_layer_faults(self.layers)]
        if faults:
            raise ConfigError("\n".join(faults))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ControlConfig:
        """Build a config from plain values. Raises ConfigError with each unknown key and the nearest known one."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"ControlConfig.from_dict needs a dict, but got {type(values).__name__}")
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise ConfigError("\n".join(unknown_name("ControlConfig key", key, known) for key in unknown))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values that JSON can hold (a tuple of layers becomes a list).

        Fields of `ADDED_LATER` are left out at their defaults: a config from before has the same values, and the bench
        names a run by them.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.name in ADDED_LATER}
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in defaults or v != defaults[k]}
        values["layers"] = list(self.layers) if isinstance(self.layers, tuple) else self.layers
        return values


def without_effect(config: ControlConfig) -> list[str]:
    """Describe the fields that differ from their defaults and change nothing, each with what it needs."""
    needed = {name: _needed(name, config) for name in changed_fields(config)}
    found = [f"{name} has no effect: it needs {needs}" for name, needs in needed.items() if needs]
    if not all_stacked(config) and config.alpha_start == 0:
        found.append(
            "alpha_start=0 keeps every copy out of the output, so the loss gives it no gradient and it never trains: "
            "start above 0"
        )
    return found


def compares_hidden(config: ControlConfig) -> bool:
    """Return whether the loss compares hidden states of both branches."""
    return config.divergence not in ("none", "attention") and config.divergence_weight != 0


def changed_fields(config: ControlConfig) -> list[str]:
    """Return the fields that differ from their defaults."""
    return [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != f.default]


def _needed(name: str, config: ControlConfig) -> str:
    """Return what a field needs to have an effect; empty if it has one."""
    gated = INTERPOLATIONS[config.interpolation].per_token
    if all_stacked(config) and name in (*OF_TWO_OUTPUTS, "norm_mix"):
        needed = (
            "structure concat or hybrid" if config.structure == "stack" else "two layers or more (hybrid stacks one)"
        )
        return f"{needed}: a stacked copy has no second output to be compared or mixed with"
    if config.divergence == "none" and name in OF_DIVERGENCE:
        return "a divergence"
    if name == "margin" and config.divergence in ("mse", "attention"):  # one of the user's own may read it
        return "divergence cosine, cosine_smooth or norm"
    if name == "interpolation" and config.alpha == "fixed" and config.alpha_start == 1 and gated:
        return "an alpha_start below 1: at a fixed 1 its gate gets no gradient and never changes"
    if name == "detach_alpha" and not config.scale_by_alpha:
        return "scale_by_alpha"
    if name == "detach_alpha" and config.alpha == "fixed" and not gated:
        return "an alpha that trains: alpha learned, or an interpolation whose alpha depends on the token"
    return "expanded: lora" if name == "lora_rank" and config.expanded == "full" else ""


def all_stacked(config: ControlConfig) -> bool:
    """Whether no copy is parallel: hybrid begins with a stacked one."""
    one = config.layers == 1 or (not isinstance(config.layers, int) and len(config.layers) == 1)
    return config.structure == "stack" or (config.structure == "hybrid" and one)


def field_choices() -> dict[str, tuple[str, ...]]:
    """Return the names that each field can have: of those that are chosen by name."""
    return {
        "structure": get_args(Structure),
        "interpolation": tuple(INTERPOLATIONS),
        "alpha": get_args(Alpha),
        "divergence": tuple(DIVERGENCES),
        "divergence_tokens": ("real", "labels"),
        "expanded": ("full", "lora"),
        "copies_dtype": ("fp32", "base"),
    }


def _choice_faults(config: ControlConfig) -> list[str]:
    unknown = {name: known for name, known in field_choices().items() if getattr(config, name) not in known}
    switches = [field.name for field in dataclasses.fields(config) if isinstance(field.default, bool)]
    return [unknown_name(name, getattr(config, name), known) for name, known in unknown.items()] + [
        f"{name} must be true or false, but got {shown(getattr(config, name))}"
        for name in switches
        if not isinstance(getattr(config, name), bool)
    ]


def _number_faults(config: ControlConfig) -> list[str]:
    faults = []
    if not _is_number(config.alpha_start) or not 0 <= config.alpha_start <= 1:
        faults.append(f"alpha_start must be a number in [0, 1], but got {shown(config.alpha_start)}")
    elif config.alpha == "learned" and config.alpha_start * (1 - config.alpha_start) < LEAST_SLOPE:
        faults.append(
            f"alpha_start={config.alpha_start!r} cannot be learned, sigmoid has no gradient there: "
            "use a value strictly between 0 and 1, or alpha='fixed'"
        )
    if not _is_number(config.divergence_weight) or not 0 <= config.divergence_weight <= MAX_WEIGHT:
        faults.append(
            f"divergence_weight must be a number from 0 to {MAX_WEIGHT:.0e}, but got {shown(config.divergence_weight)}"
        )
    if not _is_number(config.margin) or not 0 <= config.margin <= 2:
        faults.append(f"margin must be a cosine distance, a number in [0, 2], but got {shown(config.margin)}")
    if type(config.lora_rank) is not int or not 1 <= config.lora_rank <= MAX_RANK:
        faults.append(f"lora_rank must be an integer from 1 to {MAX_RANK}, but got {shown(config.lora_rank)}")
    if config.expanded == "lora" and config.structure != "concat":
        faults.append(
            "expanded='lora' needs structure='concat': a low-rank copy starts equal to its original, a stacked one "
            f"must start as the identity, but got structure={shown(config.structure)}"
        )
    if config.structure == "stack" and config.norm_mix != 0.0:
        faults.append(
            f"norm_mix={shown(config.norm_mix)}: stacked copies keep plain norms, structure 'stack' needs norm_mix=0"
        )
    elif config.norm_mix != "learned" and (not _is_number(config.norm_mix) or not 0 <= float(config.norm_mix) <= 1):
        faults.append(f"norm_mix must be 'learned' or a number in [0, 1], but got {shown(config.norm_mix)}")
    return faults


def _layer_faults(layers: object) -> list[str]:
    advice = "give a count >= 1, or a list of distinct layer indices (negative ones count from the end)"
    if isinstance(layers, bool) or not isinstance(layers, int | tuple):
        return [f"layers={shown(layers)}: {advice}"]
    if isinstance(layers, int):
        return [] if layers >= 1 else [f"layers={shown(layers)}: {advice}"]
    whole = all(isinstance(i, int) and not isinstance(i, bool) for i in layers)
    return [] if layers and whole and len(set(layers)) == len(layers) else [f"layers={shown(list(layers))}: {advice}"]


def _is_number(value: object) -> bool:
    """Whether it is a finite number, and none of so many digits that it is no float."""
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() < 1000
    return isinstance(value, float) and math.isfinite(value)
