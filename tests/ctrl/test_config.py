"""ControlConfig: every fault is named, all at once, with a way out; plain values survive JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from typing import Any

import pytest
from hypothesis import given, settings

import ctrl
from ctrl.config import ControlConfig, without_effect
from ctrl.divergence import DIVERGENCES
from ctrl.errors import ConfigError
from ctrl.interpolation import INTERPOLATIONS
from ctrl.layer import expanded_layers
from tests.helpers.control_configs import configs
from tests.helpers.tiny_llama import IDS, tiny

# argument, bad value, what the message says about it
FAULTS: list[tuple[str, Any, str]] = [
    ("structure", "concta", r"unknown structure 'concta': did you mean 'concat'\? known: concat, stack, hybrid"),
    ("interpolation", "lerpp", r"unknown interpolation 'lerpp': did you mean 'lerp'\? known: lerp, slerp"),
    ("alpha", "learnt", r"unknown alpha 'learnt': did you mean 'learned'\? known: fixed, learned"),
    ("divergence", "cosin", r"unknown divergence 'cosin': did you mean 'cosine'\? known: none, mse"),
    ("divergence_tokens", "label", r"unknown divergence_tokens 'label': did you mean 'labels'\?"),
    ("expanded", "loraa", r"unknown expanded 'loraa': did you mean 'lora'\?"),
    ("structure", None, r"unknown structure None: (did you mean '\w+'\? )?known: concat, stack, hybrid"),
    ("alpha_start", 1.1, r"alpha_start must be a number in \[0, 1\], but got 1\.1"),
    ("alpha_start", -0.1, r"alpha_start .* got -0\.1"),
    ("alpha_start", float("nan"), r"alpha_start .* got nan"),
    ("alpha_start", True, r"alpha_start .* got True"),
    ("alpha_start", "0.5", r"alpha_start .* got '0\.5'"),
    ("divergence_weight", -1, r"divergence_weight must be a number from 0 to 1e\+09, but got -1"),
    ("divergence_weight", float("inf"), r"divergence_weight .* got inf"),
    ("margin", 2.5, r"margin must be a cosine distance, a number in \[0, 2\], but got 2\.5"),
    ("margin", None, r"margin .* got None"),
    ("norm_mix", "learnt", r"norm_mix must be 'learned' or a number in \[0, 1\], but got 'learnt'"),
    ("norm_mix", 1.5, r"norm_mix .* got 1\.5"),
    ("copies_dtype", "bf16", r"unknown copies_dtype 'bf16': known: fp32, base"),
    ("detach_alpha", "false", r"detach_alpha must be true or false, but got 'false'"),
    ("checkpoint_pretrained", 1, r"checkpoint_pretrained must be true or false, but got 1"),
    ("lora_rank", 0, r"lora_rank must be an integer from 1 to 65536, but got 0"),
    ("lora_rank", 2.0, r"lora_rank .* got 2\.0"),
    (
        "layers",
        0,
        r"layers=0: give a count >= 1, or a list of distinct layer indices \(negative ones count from the end\)",
    ),
    ("layers", True, r"layers=True: give a count"),
    ("layers", "all", r"layers='all': give a count"),
    ("layers", 2.0, r"layers=2\.0: give a count"),
    ("layers", [], r"layers=\[\]: give a count"),
    ("layers", [1, 1], r"layers=\[1, 1\]: .* distinct"),
    ("layers", [0, True], r"layers=\[0, True\]: give"),
    ("layers", [0, 1.0], r"layers=\[0, 1\.0\]: give"),
]


@pytest.mark.parametrize(("name", "value", "message"), FAULTS)
def test_every_fault_names_argument_value_and_way_out(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ControlConfig(**{name: value})
    assert len(str(caught.value).splitlines()) == 1


NUMBERS = [f.name for f in dataclasses.fields(ControlConfig) if type(f.default) in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_switch_is_no_number(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}\b.*(got |=)True"):
        ControlConfig(**{name: True})


def test_all_faults_come_at_once() -> None:
    bad: dict[str, Any] = {
        "structure": "stak",
        "alpha_start": 3,
        "margin": -1,
        "layers": [2, 2],
        "divergence": "mes",
        "lora_rank": 0,
    }
    with pytest.raises(ConfigError, match="unknown structure 'stak'") as caught:
        ControlConfig(**bad)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(bad)
    for name in bad:
        assert sum(line.startswith((name, f"unknown {name}")) for line in lines) == 1


@pytest.mark.parametrize("edge", [0, 1, 0.0, 1.0])
def test_the_ends_of_alpha_are_fixed_only(edge: float) -> None:
    assert ControlConfig(alpha_start=edge).alpha_start == edge
    with pytest.raises(ConfigError, match=rf"alpha_start={re.escape(repr(edge))} cannot be learned"):
        ControlConfig(alpha="learned", alpha_start=edge)


def test_low_rank_copies_need_concat() -> None:
    assert ControlConfig(expanded="lora").expanded == "lora"
    for structure in ("stack", "hybrid"):
        with pytest.raises(ConfigError, match=f"needs structure='concat'.* but got structure='{structure}'"):
            ControlConfig(expanded="lora", structure=structure)


def test_unknown_keys_get_the_nearest_and_come_all_at_once() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown ControlConfig key 'alpha_strat': did you mean 'alpha_start'\?"
    ) as caught:
        ControlConfig.from_dict({"alpha_strat": 0.5, "layers": 2, "divergense": "mse"})
    assert "did you mean 'divergence'?" in str(caught.value).splitlines()[1]
    assert "layers" not in [line.split("'")[1] for line in str(caught.value).splitlines()]


@settings(max_examples=50, deadline=None)
@given(configs)
def test_json_round_trip(made: ControlConfig) -> None:
    again = ControlConfig.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert hash(again) == hash(made)


def test_the_dict_holds_every_field_and_is_the_callers_own() -> None:
    made = ControlConfig(layers=[1, 3], copies_dtype="base", checkpoint_pretrained=True)
    values = made.to_dict()
    assert list(values) == [f.name for f in dataclasses.fields(ControlConfig)]
    values["layers"].append(5)
    assert made.layers == (1, 3)


def test_fields_that_came_later_leave_older_configs_as_they_were() -> None:
    """A run is named by the digest of its config: a new field with its default must not make it another run."""
    assert list(ControlConfig().to_dict()) == [
        "structure", "layers", "interpolation", "alpha", "alpha_start", "divergence", "divergence_weight", "margin",
        "scale_by_alpha", "detach_alpha", "detach_pretrained", "divergence_tokens", "norm_mix", "expanded", "lora_rank",
    ]  # fmt: skip


def test_the_former_name_of_learned_norms_is_taken() -> None:
    with pytest.warns(UserWarning, match="norm_mix='alpha' is now 'learned'"):
        assert ControlConfig(norm_mix="alpha") == ControlConfig(norm_mix="learned")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"structure": "stack", "interpolation": "slerp"}, "interpolation has no effect: it needs structure concat"),
        ({"structure": "stack", "divergence": "cosine"}, "divergence has no effect: it needs structure concat or"),
        ({"structure": "hybrid", "layers": 1, "divergence": "cosine"}, "divergence has no effect: it needs two layers"),
        (
            {"structure": "hybrid", "layers": [3], "alpha": "learned"},
            "alpha has no effect: it needs two layers or more",
        ),
        ({"structure": "hybrid", "layers": 1, "norm_mix": 0.5}, "norm_mix has no effect: it needs two layers or more"),
        ({"divergence": "none", "divergence_weight": 2.0}, "divergence_weight has no effect: it needs a divergence"),
        ({"margin": 0.1}, "margin has no effect: it needs divergence cosine, cosine_smooth or norm"),
        ({"detach_alpha": True}, "detach_alpha has no effect: it needs scale_by_alpha"),
        ({"detach_alpha": True, "scale_by_alpha": True}, "detach_alpha has no effect: it needs an alpha that trains"),
        ({"lora_rank": 4}, "lora_rank has no effect: it needs expanded: lora"),
        ({"alpha_start": 0.0}, "alpha_start=0 keeps every copy out of the output, so the loss gives it no gradient"),
        ({"interpolation": "dlerp", "alpha_start": 1}, "interpolation has no effect: it needs an alpha_start below 1"),
    ],
)
def test_settings_without_effect_are_said(values: dict[str, Any], said: str) -> None:
    config = ControlConfig(**{"layers": 2, **values})
    assert [fault[: len(said)] for fault in without_effect(config)] == [said]
    with pytest.warns(UserWarning, match=f"^ControlConfig: {said}"):
        ctrl.expand(tiny(), config)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"structure": "hybrid", "interpolation": "slerp"},
        {"divergence": "norm", "margin": 0.1},
        {"scale_by_alpha": True, "detach_alpha": True, "alpha": "learned"},
        {"scale_by_alpha": True, "detach_alpha": True, "interpolation": "gate"},
        {"expanded": "lora", "lora_rank": 4},
        {"divergence_weight": 0.0},
        {"alpha_start": 1},
        {"interpolation": "plerp", "alpha_start": 1},
        {"interpolation": "moe", "alpha_start": 0.5},
        {"structure": "hybrid", "interpolation": "moe", "alpha": "learned", "alpha_start": 0.9},
    ],
)
def test_nothing_is_said_of_settings_that_have_one(values: dict[str, Any]) -> None:
    assert without_effect(ControlConfig(**values)) == []


def test_a_divergence_of_ones_own_may_read_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIVERGENCES, "own", DIVERGENCES["cosine"])
    assert without_effect(ControlConfig(divergence="own", margin=0.1)) == []


@pytest.mark.parametrize("interpolation", list(INTERPOLATIONS))
@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
def test_what_is_said_not_to_train_is_what_has_no_gradient(interpolation: str, start: float) -> None:
    config = ControlConfig(layers=[0], interpolation=interpolation, alpha_start=start)
    said = without_effect(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ctrl.expand(tiny(depth=2), config).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    copies = [p.grad is not None and bool(p.grad.any()) for p in expanded_layers(model)[0].expanded.parameters()]
    assert all(copies) != any("keeps every copy out" in fault for fault in said)


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="layers"):
        ControlConfig().layers = 4  # type: ignore[misc]


def test_a_list_given_cannot_change_it_later() -> None:
    layers = [1, 3]
    made = ControlConfig(layers=layers)
    layers.append(5)
    assert made.layers == (1, 3)


def test_replace_checks_again() -> None:
    with pytest.raises(ConfigError, match="margin"):
        dataclasses.replace(ControlConfig(), margin=9)


def test_the_paper_s_defaults() -> None:
    """Table 4, SFT: concat, lerp, alpha fixed at 1/2, mse of weight 1."""
    made = ControlConfig()
    assert (made.structure, made.interpolation, made.alpha, made.alpha_start) == ("concat", "lerp", "fixed", 0.5)
    assert (made.divergence, made.divergence_weight, made.norm_mix) == ("mse", 1.0, 0.0)
