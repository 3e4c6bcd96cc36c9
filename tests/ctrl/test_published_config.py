"""The `expansion` object of a published config.json means what it says; what it cannot hold is named."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import ctrl
from ctrl.published_config import control_config
from tests.helpers.published import by_hand
from tests.helpers.tiny_llama import IDS, disturbed, tiny


def test_values_of_the_expansion_object(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"interpolation_loss_alpha": -1}, {"scale_by_alpha": True, "divergence_weight": 1.0}),
        ({"interpolation_loss_alpha": 0}, {"divergence": "none"}),
        ({"interpolation_loss_type": "dot"}, {"divergence": "norm"}),
        ({"interpolation_loss_type": "cosine"}, {"divergence": "cosine_smooth"}),
        ({"interpolation_loss_type": "attention"}, {"divergence": "attention"}),
        ({"interpolation_norm_alpha": 0.1}, {"norm_mix": 0.1}),
        ({"freeze_interpolation_factor": False}, {"alpha": "learned"}),
    ]
    stack = {"expand_type": "stack", "freezed_layers": [0, 1, 3], "num_hidden_layers": None, "num_ori_layers": None}
    assert control_config(stack | {"interpolation_norm_alpha": 0.1}, [1]).norm_mix == 0.0  # a plain model
    for number, (expansion, expected) in enumerate(cases):
        by_hand(tmp_path / str(number), **expansion)
        config = ctrl.load_published(tmp_path / str(number)).control.config
        assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"structure": "stack"},
        {"structure": "hybrid"},
        {"divergence": "none"},
        {"divergence_weight": 0.0},
        {"scale_by_alpha": True},
    ],
)
def test_no_field_that_a_reader_fills_in_is_said_to_have_no_effect(tmp_path: Path, settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a weight that the config names next to it
        ctrl.export_published(ctrl.expand(tiny(), ctrl.ControlConfig(layers=1, **settings)), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctrl.load_published(tmp_path, tiny())


@pytest.mark.parametrize(
    ("expansion", "fault"),
    [
        ({"num_ori_layers": 5}, "num_ori_layers=5, but its tensors and freezed_layers give 4"),
        ({"freezed_layers": None}, r"freezed_layers must list the layers without a copy, from 0\.\.3, but got None"),
        ({"freezed_layers": [0, 2, 9]}, r"freezed_layers must list .* got \[0, 2, 9\]"),
        ({"freezed_layers": [0, 1, 2, 3]}, r"freezed_layers must list .* got \[0, 1, 2, 3\]"),
        (
            {"interpolation_factor": "0.7"},
            "interpolation_factor of the expansion object must be a number or null, .*'0.7'",
        ),
        ({"interpolation_loss_alpha": [1]}, r"interpolation_loss_alpha of the expansion object .* got \[1\]"),
        ({"interpolation_norm_alpha": "x"}, "interpolation_norm_alpha of the expansion object .* got 'x'"),
        ({"merge_method": ["lerp"]}, r"unknown merge_method \['lerp'\]"),
    ],
)
def test_values_that_no_expansion_gives_are_named(tmp_path: Path, expansion: dict[str, Any], fault: str) -> None:
    by_hand(tmp_path, **expansion)
    with pytest.raises((ctrl.ConfigError, ctrl.CheckpointError), match=fault):
        ctrl.load_published(tmp_path)


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({"divergence": "cosine"}, ["divergence='cosine' (comes back as 'cosine_smooth')"]),
        ({"divergence": "cosine_smooth", "margin": 0.1}, ["margin=0.1 (comes back as 0.0)"]),
        ({"divergence_tokens": "labels", "detach_pretrained": True}, ["detach_pretrained=True", "divergence_tokens="]),
        ({"scale_by_alpha": True, "divergence_weight": 2.0}, ["divergence_weight=2.0 (comes back as 1.0)"]),
        ({"scale_by_alpha": True, "detach_alpha": True}, ["detach_alpha=True (comes back as False)"]),
        ({"divergence": "none", "divergence_tokens": "labels"}, []),
        ({"divergence_weight": 0.0, "scale_by_alpha": True}, []),
        ({"divergence": "cosine", "structure": "stack"}, []),
        ({"divergence": "mse", "margin": 0.1, "divergence_weight": 0.5}, []),
    ],
)
def test_settings_that_only_training_needs_are_left_out_with_a_warning(
    tmp_path: Path, settings: dict[str, Any], lost: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    model = disturbed(**settings)
    ctrl.export_published(model, tmp_path)
    found = [str(w.message) for w in recwarn if "published layout" in str(w.message)]
    assert len(found) == (1 if lost else 0)
    assert all(text in found[0] for text in lost)
    assert torch.equal(ctrl.load_published(tmp_path).eval()(IDS).logits, model(IDS).logits)


def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ctrl.ConfigError, match="no interpolation 'moe_soft'"):
        ctrl.export_published(disturbed(interpolation="moe_soft"), tmp_path)
    with pytest.raises(ctrl.ConfigError, match="expanded='lora' cannot be exported"):
        ctrl.export_published(disturbed(expanded="lora"), tmp_path)
    with (
        ctrl.at_alpha(model := disturbed(), 0.25),
        pytest.raises(
            ctrl.ConfigError, match=r"fixes alpha=0.25, .* the layers' own alphas: export outside of the block"
        ),
    ):
        ctrl.export_published(model, tmp_path)
    assert not list(tmp_path.iterdir())
    ctrl.export_published(model, tmp_path)


@pytest.mark.parametrize("structure", ["concat", "stack"])
def test_an_export_names_what_it_cannot_hold_of_memory_and_types(structure: Any, tmp_path: Path) -> None:
    values: dict[str, Any] = {"structure": structure, "copies_dtype": "base", "checkpoint_pretrained": True}
    lost = r"cannot hold copies_dtype='base' \(comes back as 'fp32'\), checkpoint_pretrained=True"
    with pytest.warns(UserWarning, match=lost):
        ctrl.export_published(ctrl.expand(tiny().bfloat16(), ctrl.ControlConfig(layers=2, **values)), tmp_path)
    with pytest.warns(UserWarning, match=r"cannot hold checkpoint_pretrained=True \(comes back as False\): "):
        ctrl.export_published(ctrl.expand(tiny(), ctrl.ControlConfig(layers=2, **values)), tmp_path)
