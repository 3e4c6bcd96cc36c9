"""What is noted of an expanded model and its base, by which another base is known."""

from __future__ import annotations

import json

import torch

import ctrl
from ctrl.facts import base_facts, buffer_types, description
from tests.helpers.tiny_llama import disturbed, tiny


def test_a_description_is_json_and_has_the_facts_of_the_base_before() -> None:
    base, model = tiny(), ctrl.expand(tiny(), ctrl.ControlConfig(layers=2))
    noted = json.loads(json.dumps(description(model)))
    assert ctrl.ControlConfig.from_dict(noted["control"]) == model.control.config
    assert {name: noted["base"][name] for name in base_facts(base)} == base_facts(base)
    assert noted["base"]["expanded_layers"] == [1, 3]
    assert noted["base"]["quantised"] == []


def test_its_sums_are_those_of_now_or_the_given_ones() -> None:
    model = disturbed()
    before = description(model)["base"]["sums"]
    model.model.norm.weight.data += 1
    now = description(model)["base"]["sums"]
    assert {name for name in before if before[name] != now[name]} == {"model.norm.weight"}
    assert description(model, {"some": ("torch.float32", 7)})["base"]["sums"] == {"some": ["torch.float32", 7]}


def test_buffers_in_no_file_have_the_type_that_to_gives_them() -> None:
    assert buffer_types(tiny()) == ["torch.float32"]
    assert buffer_types(tiny().to(torch.bfloat16)) == ["torch.bfloat16"]
