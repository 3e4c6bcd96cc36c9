"""Convert between ControlConfig and the `expansion` object in config.json of a published checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ctrl.config import ControlConfig, all_stacked
from ctrl.errors import ConfigError, unknown_name, warn
from ctrl.interpolation import INTERPOLATIONS
from ctrl.layer import expanded_layers
from ctrl.published_names import layout_of

DIVERGENCE = {"mse": "mse", "cosine": "cosine_smooth", "dot": "norm", "attention": "attention"}


def control_config(expansion: Mapping[str, Any], originals: list[int]) -> ControlConfig:
    """Make the ControlConfig that an `expansion` object describes. originals: the base layers that have copies.

    Raises ConfigError for an unknown name, or a value that must be a number and is not.
    """
    methods = {cls.published.method: name for name, cls in INTERPOLATIONS.items() if cls.published is not None}
    method, loss = expansion.get("merge_method") or "lerp", expansion.get("interpolation_loss_type") or "mse"
    for kind, value, known in (("merge_method", method, methods), ("interpolation_loss_type", loss, DIVERGENCE)):
        if not isinstance(value, str) or value not in known:
            raise ConfigError(unknown_name(kind, value, list(known)))
    theta, weight = _number(expansion, "interpolation_factor"), _number(expansion, "interpolation_loss_alpha") or 0.0
    norm_mix = _number(expansion, "interpolation_norm_alpha") or 0.0
    learned = theta is not None and not expansion.get("freeze_interpolation_factor", True)
    start = 1.0 if theta is None else 1 / (1 + math.exp(-max(-700.0, min(700.0, theta))))  # null: only the copy
    plain = ControlConfig(structure=expansion.get("expand_type", "concat"), layers=originals)
    losses: dict[str, Any] = {"divergence": "none"}
    if all_stacked(plain):  # a plain model with more layers: it compares nothing, and has no relaxed norms
        norm_mix, losses = 0.0, {}
    elif weight:
        losses = {"divergence": DIVERGENCE[loss], "scale_by_alpha": weight == -1}
        losses["divergence_weight"] = 1.0 if weight == -1 else float(weight)
    return dataclasses.replace(
        plain,
        interpolation=methods[method],
        alpha="learned" if learned else "fixed",
        alpha_start=min(max(start, 1e-6), 1 - 1e-6) if learned else start,
        norm_mix="learned" if norm_mix == -1 else float(norm_mix),
        **losses,
    )


def _number(expansion: Mapping[str, Any], name: str) -> float | None:
    """Read a number or null; a missing one is 0."""
    value = expansion.get(name, 0)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)):
        return value
    raise ConfigError(f"{name} of the expansion object must be a number or null, but got {value!r}")


def expansion_object(config: ControlConfig, model: Any, total: int, unfrozen: list[int]) -> dict[str, Any]:
    """Make the `expansion` object. total: number of layers in the checkpoint; unfrozen: those that hold a copy."""
    theta = None if config.alpha_start == 1 else math.log(config.alpha_start / (1 - config.alpha_start) or 1e-300)
    back = {ours: theirs for theirs, ours in DIVERGENCE.items()} | {"cosine": "cosine"}
    weight = -1 if config.scale_by_alpha else config.divergence_weight
    return {
        "expand_type": config.structure,
        "merge_method": layout_of(config.interpolation).method,
        "freezed_layers": [i for i in range(total) if i not in unfrozen],
        "expanded_from": model.config._name_or_path,
        "num_ori_layers": model.control.total,
        "num_exp_layers": len(unfrozen),
        "interpolation_factor": theta,
        "interpolation_loss_alpha": weight if _diverges(config) else 0,
        "interpolation_loss_type": back.get(config.divergence, "mse"),
        "interpolation_norm_alpha": -1 if config.norm_mix == "learned" else config.norm_mix,
        "freeze_interpolation_factor": config.alpha == "fixed",
        "freeze_ori_layers": True,
        "freeze_ori_non_layers": True,
    }


def check_exportable(model: Any) -> None:
    """Raise ConfigError for settings that the layout cannot hold and that change the model's outputs."""
    config: ControlConfig = model.control.config
    layout_of(config.interpolation)
    if config.expanded != "full":
        raise ConfigError("the published layout holds full copies: expanded='lora' cannot be exported")
    gates = [layer.interpolation for layer in expanded_layers(model)]
    if fixed := [gate.fixed_alpha.item() for gate in gates if gate is not None and gate.fixed_alpha is not None]:
        raise ConfigError(
            f"ctrl.at_alpha fixes alpha={fixed[0]:.3g}, and the export would hold the layers' own alphas: export "
            "outside of the block. ctrl.merge_back inside it makes a plain model at this alpha"
        )


def _diverges(config: ControlConfig) -> bool:
    return config.structure != "stack" and config.divergence != "none" and config.divergence_weight > 0


def warn_of_losses(config: ControlConfig, back: ControlConfig, half: bool) -> None:
    """Warn of settings that only further training needs and that get lost.

    back: the config that a reader gets. half: whether the base is in a half type, since others have one copies_dtype.
    """
    names = ["divergence", "divergence_weight", "scale_by_alpha", "detach_pretrained", "divergence_tokens"]
    names += ["margin"] if config.divergence in ("cosine", "cosine_smooth", "norm") else []
    names += ["detach_alpha"] if config.scale_by_alpha else []
    names = [*(names if _diverges(config) else ()), *(["copies_dtype"] if half else ()), "checkpoint_pretrained"]
    pairs = [(name, getattr(config, name), getattr(back, name)) for name in names]
    lost = [f"{name}={here!r} (comes back as {there!r})" for name, here, there in pairs if here != there]
    if lost:
        warn(
            f"the published layout cannot hold {', '.join(lost)}: the export computes the same, but further training "
            "would differ. ctrl.save keeps all settings",
            stacklevel=3,
        )
