"""What an operation cannot do is refused before a model is loaded, by files and numbers alone."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ctrl.checkpoint import CONFIG_FILE
from experiments.common.errors import ConfigError, RunError
from experiments.common.yaml_values import dump_yaml
from experiments.methods.saving import ADAPTER_CONFIG
from experiments.posthoc.checks import as_printed, check_operation, without_form
from experiments.posthoc.run import posthoc
from experiments.soften.run import _points
from tests.helpers.one_arm import ARMS
from tests.helpers.one_arm import arm as arm_config

KINDS = {"full": "model.safetensors", "control": CONFIG_FILE, "lora": ADAPTER_CONFIG}
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def arms(tmp_path: Path) -> Path:
    for name, file in KINDS.items():
        (tmp_path / "arms" / f"{name}-0.01" / "trained").mkdir(parents=True)
        (tmp_path / "arms" / f"{name}-0.01" / "trained" / file).write_text("{}")
        (tmp_path / "arms" / f"{name}-0.01" / "result.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(dump_yaml({"name": "x", "arms": ARMS}))
    return tmp_path / "arms"


WRONG = [
    *(("wise", "full", [alpha], "number from 0 to 1$") for alpha in (NAN, INF, -INF, 1e30, -1.0, 2.0)),
    *(("merge", "control", [alpha], "number from 0 to 1$") for alpha in (NAN, -0.5, 2.0)),
    *(("dial", "control", [alpha], "number from -100 to 100$") for alpha in (NAN, INF, 1e30)),
    ("wise", "full", [0.5, 0.5000001], r"must differ in six digits, but 0\.5 is there more than once"),
    ("wise", "full", [], r"--alphas 0\.25 0\.5 0\.75"),
    ("lines", "full", [1.5], "number from 0 to 1$"),
    ("lines", "full", [], r"first layer's shares: --alphas 0\.25 0\.5 0\.75"),
    ("merge", "full", [], "'full-0.01' is not expanded and has no adapter: use wise"),
    ("merge", "lora", [0.5], "--alphas has no meaning"),
    ("dial", "full", [0.5], "dial needs an expanded arm"),
    ("dial", "control", [], "dial needs an expanded arm"),
    ("dial_depth", "full", [0.5], "dial_depth needs an expanded arm"),
    ("dial_depth", "control", [1.5], "alpha of dial_depth is a number from 0 to 1$"),
    ("ensemble", "full", [0.5], "ensemble has no shares, leave them out"),
    ("task_vectors", "full", [], "name the folders of the others, --with RUN/arms/NAME-LR, or give --alphas"),
]


@pytest.mark.parametrize(("operation", "arm", "alphas", "said"), WRONG)
def test_what_an_operation_cannot_do(arms: Path, operation: str, arm: str, alphas: list[float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        posthoc(arms.parent, arm, 0.01, operation, alphas)


def test_other_arms_are_for_operations_of_several(arms: Path) -> None:
    with pytest.raises(ConfigError, match="which wise does not do: leave it out, or use task_vectors or ensemble"):
        posthoc(arms.parent, "full", 0.01, "wise", [0.5], [arms / "lora-0.01"])


@pytest.mark.parametrize("operation", ["task_vectors", "ensemble"])
def test_each_of_several_arms_is_another_trained_arm_of_the_same_base(arms: Path, operation: str) -> None:
    """One that was named twice was measured, written, and refused afterwards."""
    alphas = [] if operation == "ensemble" else [0.5]
    values: dict[str, Any] = {"name": "x", "arms": ARMS}
    (arms.parent / "link").symlink_to(arms / "full-0.01")
    elsewhere = arms.parent / "other" / "arms" / "full-0.01"
    (elsewhere / "trained").mkdir(parents=True)
    (elsewhere.parents[1] / "config.yaml").write_text(dump_yaml({**values, "base_model": "b"}))
    (arms.parent / "no-arm").mkdir()
    lora, control = arms / "lora-0.01", arms / "control-0.01"
    for others, said in (
        ([arms / "full-0.01"], r"full-0\.01 is full-0\.01, the arm of --arm: each arm counts once"),
        ([lora, arms.parent / "link"], r"link is full-0\.01, the arm of --arm"),
        (
            [lora, control, arms / "." / "lora-0.01"],
            r"lora-0\.01 is named twice: each arm counts once, so leave it out",
        ),
        ([arms.parent / "no-arm"], "is not the folder of a trained arm"),
        ([lora, elsewhere], f"{operation} needs one base model, but .* was trained on 'b'"),
    ):
        before = sorted(arms.parent.rglob("*"))
        with pytest.raises(ConfigError, match=said):
            posthoc(arms.parent, "full", 0.01, operation, alphas, others)
        assert sorted(arms.parent.rglob("*")) == before
    check_operation(operation, arms / "full-0.01", alphas, [lora, control])
    drawn = {**values, "evaluation": {"suites": {"new": {"temperature": 0.5}}}}
    (arms.parent / "config.yaml").write_text(dump_yaml(drawn))
    said = (
        r"ensemble writes greedy replies alone, and those of .* are drawn \(evaluation\.suites\.new: temperature 0\.5"
    )
    with pytest.raises(ConfigError, match=said) if operation == "ensemble" else nullcontext():
        check_operation(operation, arms / "full-0.01", alphas, [lora])  # not after it was loaded and measured


@pytest.mark.parametrize("arm", ["../arms/full", "./full", "none"])
def test_an_arm_is_named_not_pointed_at(arms: Path, arm: str) -> None:
    with pytest.raises(RunError, match=f"has no finished arm {arm} at 0.01; there are: control-0.01, full-0.01"):
        posthoc(arms.parent, arm, 0.01, "wise", [0.5])


def test_an_arm_whose_result_is_not_written_yet_is_none_of_those_that_are_there(arms: Path) -> None:
    (arms / "full-0.01" / "result.json").unlink()
    with pytest.raises(RunError, match=r"has no finished arm full at 0\.01; there are: control-0\.01, lora-0\.01$"):
        posthoc(arms.parent, "full", 0.01, "wise", [0.5])


@pytest.mark.parametrize(
    ("operation", "arm", "alphas"),
    [
        ("wise", "full", [0.0, 0.5, 1.0]),
        ("merge", "control", []),
        ("merge", "lora", []),
        ("dial", "control", [-1.0, 2.0]),
        ("task_vectors", "full", [-1.0, 1.5]),
        ("ensemble", "control", []),
    ],
)
def test_what_it_can_do(arms: Path, operation: str, arm: str, alphas: list[float]) -> None:
    check_operation(operation, arms / f"{arm}-0.01", alphas)


@pytest.mark.parametrize(
    ("operation", "fields", "alpha", "said"),
    [
        ("merge", {"method": "full"}, None, "not expanded and has no adapter: use wise"),
        ("merge", {"method": "ewc"}, 0.5, "not expanded and has no adapter: use wise"),
        ("merge", {"method": "lora"}, 0.5, "alpha has no meaning for it: leave it out"),
        ("merge", {"method": "lora"}, None, ""),
        ("merge", {"method": "control"}, 0.5, ""),
        ("merge", {"method": "stack"}, None, ""),
        ("dial", {"method": "lora"}, 0.5, "dial needs an expanded arm, but 'x' is not: use wise"),
        ("dial", {"method": "hybrid"}, 0.5, "has stacked ones: use merge"),
        ("wise", {"method": "full"}, 0.5, ""),
        ("wise", {"method": "stack"}, 0.5, "has stacked ones: use merge"),
        ("wise", {"method": "control", "control": {"interpolation": "plerp"}}, 0.5, "interpolation 'plerp' of arm 'x'"),
        ("lines", {"method": "control", "control": {"norm_mix": "learned"}}, 0.5, "norm_mix 'learned' of arm 'x' has"),
        ("dial", {"method": "control", "control": {"interpolation": "plerp"}}, 0.5, ""),
        ("dial_depth", {"method": "control", "control": {"interpolation": "dlerp"}}, 0.5, "on the token: use dial"),
    ],
)
def test_what_no_arm_of_a_config_will_have(operation: str, fields: Any, alpha: float | None, said: str) -> None:
    found = without_form(operation, arm_config(**fields), alpha)
    assert bool(found) is bool(said)
    assert said in found


@pytest.mark.parametrize("alpha", [0.1234561, 1 / 3, 0.5, 1.0, 1e-9])
def test_an_alpha_is_what_the_name_of_its_folder_says(alpha: float) -> None:
    """Two that print alike share a folder, so they are one."""
    assert f"{as_printed(alpha):.17g}" == f"{float(f'{alpha:g}'):.17g}"
    assert as_printed(alpha) == as_printed(as_printed(alpha)) == pytest.approx(alpha, rel=1e-5)
    assert {*_points([alpha])} == {as_printed(alpha), 1.0}
