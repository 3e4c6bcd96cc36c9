"""An arm as a product in the YAML: its forms, its dump, its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from experiments.common.errors import ConfigError, DamagedError
from experiments.common.yaml_values import set_field
from experiments.config import load_config, parse_config
from experiments.methods import AVERAGES, LOSS_TERMS, TUNINGS
from experiments.methods.averaging import Ema
from experiments.methods.base import Average
from experiments.methods.config import ArmConfig
from experiments.methods.losses import Kl
from experiments.methods.low_rank import Lora
from experiments.methods.parts import PARTS
from experiments.methods.token_weights import Dft
from experiments.methods.tuning import Full
from experiments.runs.run import run_experiment
from experiments.runs.trained import load_trained
from tests.helpers.engine import PRODUCTS
from tests.helpers.one_arm import arm
from tests.helpers.small_run import small_config, tiny_base


def test_parts_have_different_names() -> None:
    assert len(PARTS) == len(TUNINGS) + len(LOSS_TERMS) + len(AVERAGES)


def test_a_product_of_all_parts() -> None:
    made = arm(train={"lora": {"rank": 16}}, loss=["dft", {"kl": {"weight": 2}}], average={"ema": {"decay": 0.9}})
    method = made.build()
    assert method.tuning == Lora(rank=16)
    assert method.losses == (Dft(), Kl(weight=2.0))
    assert method.average == Ema(decay=0.9)
    assert made.method_name == "lora+dft+kl+ema"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"train": "full"}, "full"),
        ({"train": {"full": None}}, "full"),
        ({"loss": ["dft"]}, "full+dft"),
        ({"loss": "dft"}, "full+dft"),
        ({"loss": {"kl": {"weight": 1}}}, "full+kl"),
        ({"average": "ema"}, "full+ema"),
        ({"average": {"ema": {}}}, "full+ema"),
    ],
)
def test_short_forms(values: dict[str, Any], name: str) -> None:
    made = arm(**values)
    assert made.method_name == name
    assert type(made.build().tuning) is Full
    assert (type(made.build().average) is Average) == ("average" not in values)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_survives_a_round_trip_with_all_its_fields(name: str) -> None:
    made = arm(**PRODUCTS[name], replay=0.1)
    written = made.to_dict()
    assert written.keys() == {"name", "learning_rates", "replay", "train", *PRODUCTS[name]}
    assert ArmConfig.model_validate(written).build() == made.build()
    assert ArmConfig.model_validate(written).to_dict() == written
    configs = [parse_config({"name": "x", "arms": [a]}) for a in (made, written, {**written, "replay": 0.2})]
    assert configs[0].digest() == configs[1].digest() != configs[2].digest()


def test_what_is_written_and_logged() -> None:
    made = arm(train={"partial": {"layers": [0, -1]}}, loss=[{"kl": {"weight": 1}}], average="mer")
    parts = {
        "train": {"partial": {"layers": [0, -1]}},
        "loss": [{"kl": {"weight": 1.0, "tokens": "all"}}],
        "average": {"mer": {"every": 10, "rate": 0.5}},
    }
    assert made.to_dict() == {"name": "x", "learning_rates": [1e-3], "replay": None, **parts}
    assert made.params() == parts
    assert arm(loss=["dft"]).to_dict().keys() == {"name", "learning_rates", "replay", "train", "loss"}


def test_a_field_of_a_part_is_set_by_its_dotted_key() -> None:
    """As a study does: `path: arms.0.train.lora.rank`."""
    values: dict[str, Any] = {"train": {"lora": {"rank": 8}}, "loss": ["dft", {"kl": {}}]}
    config: dict[str, Any] = {"name": "x", "arms": [{"name": "x", "learning_rates": [1e-3], **values}]}
    for path, value in (("train.lora.rank", 4), ("loss.1.kl.weight", 3), ("average", {"ema": {"decay": 0.5}})):
        set_field(config, f"arms.0.{path}", value)
    method = parse_config(config).arms[0].build()
    assert (method.tuning, method.losses[1], method.average) == (Lora(rank=4), Kl(weight=3.0), Ema(decay=0.5))


@pytest.mark.slow
def test_a_run_of_products_names_and_keeps_them(tmp_path: Path) -> None:
    """Through the whole bench: checked, trained, named in the result, and read again from the run's folder."""
    arms = [
        {
            "name": "a",
            "learning_rates": [1e-2],
            "train": {"lora": {"rank": 2}},
            "loss": ["dft", "kl"],
            "average": "ema",
        },
        {"name": "b", "learning_rates": [1e-2], "train": {"control": {"layers": 2}}, "loss": ["dft"]},
    ]
    small = {"evaluation": {"every": 2, "suites": ["new"], "new_items": 2}, "training": {"steps": 2, "batch_size": 2}}
    config = small_config(tiny_base(tmp_path / "base"), arms=arms, **small)
    run = run_experiment(config, tmp_path / "runs", say=lambda text: None)
    assert [(r.status, r.method) for r in run.results] == [("finished", "lora+dft+kl+ema"), ("finished", "control+dft")]
    again = load_config(run.folder / "config.yaml")
    assert again.digest() == config.digest()
    assert [arm.to_dict() for arm in again.arms] == [arm.to_dict() for arm in config.arms]
    assert hasattr(load_trained(run.folder, "a", 1e-2), "peft_config")
    assert run_experiment(again, tmp_path / "runs", say=lambda text: None).folder == run.folder
    weights = tmp_path / "base" / "model.safetensors"
    save_file({k: v + 0.1 for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    with pytest.raises(DamagedError, match=r"trained was trained on .*its weights are others"):
        load_trained(run.folder, "a", 1e-2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"lora": {"ranks": 1}}}, r"arms\.0\.train\.lora\.ranks: unknown key; did you mean 'rank'\? known: "),
        ({"train": {"lora": {"rank": 0}}}, r"arms\.0\.train\.lora\.rank: Input should be greater .*\(got 0\)"),
        ({"train": "lor"}, r"arms\.0\.train: unknown name 'lor': did you mean 'lora'\?"),
        ({"train": {"full": {"rank": 1}}}, r"arms\.0\.train\.full\.rank: unknown key"),
        ({"train": {"lora": {}, "full": {}}}, r"arms\.0\.train: give one name, or one name with its fields, as "),
        ({"train": 3}, r"arms\.0\.train: give one name, .* as partial or \{partial: \{layers: \.\.\.\}\}, but got 3"),
        ({"train": {"partial": {"layers": []}}}, r"arms\.0\.train\.partial\.layers: layers=\[\]: give a count >= 1"),
        ({"train": {"control": {"layer": 1}}}, r"arms\.0\.train\.control: unknown ControlConfig key 'layer': did you"),
        ({"loss": ["dft", {"kl": {"wieght": 1}}]}, r"arms\.0\.loss\.1\.kl\.wieght: unknown key; did you mean 'weight'"),
        ({"loss": ["ema"]}, r"arms\.0\.loss\.0: unknown name 'ema': .*known: kl, l2sp, ewc, dft"),
        ({"average": {"ema": {"decay": 1}}}, r"arms\.0\.average\.ema\.decay: Input should be less than 1 \(got 1\)"),
        ({"average": "emma"}, r"arms\.0\.average: unknown name 'emma': did you mean 'ema'"),
        ({"method": "full", "loss": ["dft"]}, r"arms\.0: got method and loss: give either method \(with its options"),
        ({"train": "full", "options": {}, "control": {}}, r"arms\.0: got options, control and train: give either "),
        ({}, r"arms\.0: nothing says how to train: give either method .* or train, loss and average"),
        ({"train": "lora", "average": "wise"}, r"arms\.0: wise interpolates weights"),
        (
            {"train": {"control": {"layers": 2, "expanded": "lora"}}, "average": "wise"},
            r"arms\.0: wise interpolates weights",
        ),
        ({"trian": "lora"}, r"arms\.0\.trian: unknown key; did you mean 'train'"),
    ],
)
def test_wrong_products_are_named_with_their_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arm(**values)
