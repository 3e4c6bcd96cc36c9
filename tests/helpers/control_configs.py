"""Any valid ControlConfig, as a hypothesis strategy."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st

from ctrl import config
from ctrl.config import ControlConfig
from ctrl.divergence import DIVERGENCES
from ctrl.interpolation import INTERPOLATIONS


def made(norm_mix: Any, **values: Any) -> ControlConfig:
    """Stacked copies keep plain norms."""
    return ControlConfig(norm_mix=0.0 if values["structure"] == "stack" else norm_mix, **values)


configs = st.builds(
    made,
    structure=st.sampled_from(get_args(config.Structure)),
    layers=st.integers(1, 64) | st.lists(st.integers(0, 63), min_size=1, max_size=8, unique=True),
    interpolation=st.sampled_from(list(INTERPOLATIONS)),
    alpha=st.sampled_from(get_args(config.Alpha)),
    alpha_start=st.floats(0.01, 0.99),
    divergence=st.sampled_from(list(DIVERGENCES)),
    divergence_weight=st.floats(0, 1e6),
    margin=st.floats(0, 2),
    scale_by_alpha=st.booleans(),
    detach_alpha=st.booleans(),
    detach_pretrained=st.booleans(),
    divergence_tokens=st.sampled_from(["real", "labels"]),
    norm_mix=st.floats(0, 1) | st.just("learned"),
    copies_dtype=st.sampled_from(["fp32", "base"]),
    checkpoint_pretrained=st.booleans(),
)
