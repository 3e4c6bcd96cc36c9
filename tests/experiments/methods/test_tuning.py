"""What trains: one contract for all tunings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ctrl import ControlConfig
from ctrl.interpolation import INTERPOLATIONS
from ctrl.structure import place
from experiments.methods import TUNINGS
from experiments.methods.base import MethodContext
from experiments.methods.parts import read_part, write_part
from experiments.methods.shorthands import WITHOUT_FIELDS
from experiments.methods.tuning import Half
from experiments.methods.weights import trainable
from tests.helpers.engine import CONTROL, LAYERS, bf16_start, collate, context
from tests.helpers.tiny_llama import sequences, tiny

FIELDS: dict[str, dict[str, Any]] = {
    "partial": LAYERS,
    "control": LAYERS,
    "stack": LAYERS,
    "hybrid": LAYERS,
    "lora": {"rank": 2, "dropout": 0.1},
    "rslora": {"rank": 2, "targets": "mlp"},
    "dora": {"rank": 2},
    "corda": {"rank": 2, "batches": 2},
    "peft": {"type": "miss", "r": 4},
}


def read(name: str) -> Any:
    return read_part(TUNINGS, {name: FIELDS.get(name, {})})


@pytest.mark.parametrize("name", TUNINGS)
def test_a_tuning_starts_as_the_base(name: str) -> None:
    model, base = read(name).prepare(tiny(), context()).eval(), tiny().eval()
    ids = collate(sequences())["input_ids"]
    rounding = 1e-5 if name == "corda" else 0.0  # moves a part of W into the adapter
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, base(ids).logits, rtol=0, atol=rounding)


MIXED = [{"control": LAYERS | {"interpolation": name}} for name in INTERPOLATIONS]
OTHERS = [{"control": LAYERS | {"expanded": "lora"}}, {"dora": {"rank": 2, "dropout": 0.1}}]


@pytest.mark.parametrize("train", [*({name: FIELDS.get(name, {})} for name in TUNINGS), *MIXED, *OTHERS], ids=str)
def test_what_changes_nothing_is_the_base_in_bf16_too(train: dict[str, Any], tmp_path: Path) -> None:
    """Layers of PEFT went on in fp32, DoRA's lengths were rounded: such arms had a KL from arithmetic alone."""
    assert bf16_start(read_part(TUNINGS, train), tmp_path) <= (
        1e-3 if "corda" in train else 0
    )  # which moves a part of W


@pytest.mark.parametrize("name", TUNINGS)
def test_it_trains_something_and_in_the_layers_it_chooses(name: str) -> None:
    tuning = read(name)
    names = trainable(tuning.prepare(tiny(), context()))
    assert names
    if tuning.layer_choice is None:
        assert any(".layers.0." in n for n in names)
    else:
        assert place(tuning.layer_choice, 4) == [1, 3]
        assert all(".layers.1." in n or ".layers.3." in n for n in names)


@pytest.mark.parametrize("name", ["moe", "moe_soft", "copies", "lora"])
def test_the_seed_alone_decides_where_it_starts(name: str) -> None:
    drawn = {"copies": {"expanded": "lora"}}.get(name, {"interpolation": name})

    def start(seed: int, before: int) -> Any:
        model = tiny()
        torch.manual_seed(before)
        tuning = read(name) if name in TUNINGS else read_part(TUNINGS, {"control": LAYERS | drawn})
        found = tuning.prepare(model, replace(context(), seed=seed)).state_dict()
        return torch.cat([values.flatten().float() for values in found.values()])

    assert torch.equal(start(0, 0), start(0, 5))
    assert not torch.equal(start(0, 0), start(1, 0))


@pytest.mark.parametrize("name", TUNINGS)
def test_its_fields_survive_a_round_trip_and_a_wrong_one_is_named(name: str) -> None:
    tuning = read(name)
    written = write_part(tuning)
    assert list(written) == [name]
    assert read_part(TUNINGS, written) == tuning
    assert write_part(read_part(TUNINGS, written)) == written
    with pytest.raises(ValueError, match="wrong_field"):
        read_part(TUNINGS, {name: {"wrong_field": 1}})


@pytest.mark.parametrize("name", WITHOUT_FIELDS)
def test_a_shorthand_gives_it_its_control(name: str) -> None:
    tuning = TUNINGS[name].from_control(ControlConfig(layers=3))
    assert tuning.in_control == (name in ("partial", "control", "stack", "hybrid"))
    if tuning.in_control:
        assert tuning.layer_choice == 3
    else:
        assert tuning == TUNINGS[name]()


def test_half_of_each_layers_matrices_train_and_nothing_else() -> None:
    """Two of four in attention; of the three others one, in every second layer two."""
    model: Any = Half().prepare(tiny(), context())
    names = set(trainable(model))
    for layer in range(4):
        of_layer = {n for n in names if f".layers.{layer}." in n}
        assert len({n for n in of_layer if ".self_attn." in n}) == 2
        assert len({n for n in of_layer if ".mlp." in n}) == 1 + layer % 2
    assert all("_proj.weight" in n for n in names)
    assert set(trainable(Half().prepare(tiny(), context()))) == names
    other = MethodContext(1, context().precision)
    assert set(trainable(Half().prepare(tiny(), other))) != names


def test_the_structure_is_fixed_by_stack_and_hybrid() -> None:
    for name in ("stack", "hybrid"):
        assert read(name).config.structure == name
        assert read_part(TUNINGS, {name: {"structure": name}}).config.structure == name
    assert read_part(TUNINGS, {"control": {"structure": "hybrid"}}).config.structure == "hybrid"
    with pytest.raises(ValueError, match="method 'stack' has structure 'stack', but structure='hybrid'"):
        read_part(TUNINGS, {"stack": {"structure": "hybrid"}})


def test_the_fields_of_control_are_those_of_its_config() -> None:
    values = {"layers": [1, 3], "interpolation": "dlerp", "alpha": "learned", "divergence": "cosine"}
    tuning = read_part(TUNINGS, {"control": values})
    assert tuning.config == ControlConfig(**values)
    assert write_part(tuning) == {"control": tuning.config.to_dict()}
    assert list(CONTROL) == ["control"]
    for wrong, message in (
        ({"interpolatoin": "lerp"}, "unknown ControlConfig key 'interpolatoin': did you mean 'interpolation'"),
        ({"interpolation": "lrp"}, "unknown interpolation 'lrp': did you mean 'lerp'"),
        ({"layers": 0}, "layers=0: give a count >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            read_part(TUNINGS, {"control": wrong})
    with pytest.raises(ValueError, match="layers='all': give a count >= 1"):
        read_part(TUNINGS, {"partial": {"layers": "all"}})
