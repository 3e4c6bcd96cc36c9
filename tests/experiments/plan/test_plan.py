"""What fits, and what to change if it does not; the plan is held against measured peaks."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.common.errors import ConfigError
from experiments.config import SHIPPED, ExperimentConfig, load_config
from experiments.data.hub import HuggingFace
from experiments.models.precision import Precision
from experiments.plan.accelerators import GPUS, Device, chosen, here
from experiments.plan.plan import plan_run
from experiments.plan.report import plan_text, refusal
from experiments.plan.shape import build
from experiments.runs.unused import check_fields
from tests.helpers.small_run import small_arm, small_config, tiny_base

ROOT = Path(__file__).parents[3]
ROOMY = Device("a roomy device", 1e12)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def given(base: str) -> ExperimentConfig:
    arm = {"name": "full", "method": "full", "learning_rates": [1e-3, 1e-4]}
    training = {"steps": 10, "batch_size": 8, "warmup_steps": 1}
    return small_config(base, arms=[arm], training=training, data={"length": 64})


def test_a_plan_fits_a_roomy_device(given: ExperimentConfig) -> None:
    plan = plan_run(given, ROOMY)
    (arm,) = plan.arms
    assert arm.micro_batch == 8
    assert arm.change is None
    assert not plan.too_large
    assert arm.tokens == 8 * 64
    text = plan_text(plan, 0.4)
    assert "fits         training.micro_batch up to 8" in text
    assert "all 2 arms: " in text
    assert "no times: give --gpu" in plan_text(
        replace(plan, config=given.model_copy(update={"precision": "auto"})), 0.4
    )
    assert arm.seconds(ROOMY, 0.4) is None


def test_a_run_in_fp32_has_no_times_by_the_speed_of_bf16(given: ExperimentConfig) -> None:
    """An H100 has 989 TFLOP/s in bf16 and 67 in fp32."""
    plan = plan_run(given, GPUS["h100-80gb"], length=16)
    text = plan_text(plan, 0.4)
    assert "no times: the speeds of GPUs here are those of bf16, and precision is fp32" in text
    assert "TFLOP/s" not in text
    assert "tokens/s" not in text


def test_auto_is_planned_as_bf16_on_a_device_and_as_here_on_this_machine(
    given: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop plans for a GPU: --memory took the arithmetic of the laptop."""
    bf16, fp32 = (plan_run(given.model_copy(update={"precision": name}), ROOMY).arms[0] for name in ("bf16", "fp32"))
    assert bf16.parts != fp32.parts
    auto = given.model_copy(update={"precision": "auto"})
    for pays, mine in ((True, bf16), (False, fp32)):
        monkeypatch.setattr("experiments.models.precision.bf16_pays", lambda pays=pays: (pays, "patched"))
        for device, wanted in ((chosen(None, "24gb"), bf16), (chosen("l4-24gb", None), bf16), (here(), mine)):
            assert plan_run(auto, device).arms[0].parts == wanted.parts


def test_smaller_devices_need_smaller_micro_batches_then_other_changes(given: ExperimentConfig) -> None:
    whole = plan_run(given, ROOMY).arms[0].peak
    found = []
    for share in (1.0, 0.8, 0.5, 0.1):
        plan = plan_run(given, Device("a device", share * whole))
        found.append(plan.arms[0])
        assert (plan.too_large == []) == (share == 1.0)
        if share < 1:
            assert "DOES NOT FIT" in plan_text(plan, 0.4)
            assert "arm 'full': a step needs" in refusal(plan)
    assert [arm.micro_batch for arm in found] == sorted((arm.micro_batch for arm in found), reverse=True)
    assert found[0].change is None
    assert found[-1].change is None  # nothing helps: the weights alone are more
    changes = [arm.change for arm in found[1:-1]]
    assert all(change and change.startswith("training: {micro_batch: ") for change in changes)
    assert len(set(changes)) > 1


def test_what_a_change_promises_holds(base: str) -> None:
    """The change of a plan, written into the config, makes it fit, and a step has as many rows as before."""
    training = {"steps": 10, "batch_size": 8, "warmup_steps": 1, "gradient_accumulation": 2}
    arms = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]
    config = small_config(base, arms=arms, training=training, data={"length": 64})
    device = Device("a device", 0.8 * plan_run(config, ROOMY).arms[0].peak)
    change = plan_run(config, device).arms[0].change
    assert change is not None
    changed: dict[str, Any] = yaml.safe_load(change)["training"]
    again = plan_run(small_config(base, arms=arms, training={**training, **changed}, data={"length": 64}), device)
    assert not again.too_large
    assert again.config.training.step_rows == 16


def test_more_devices_and_times(given: ExperimentConfig) -> None:
    gpu = GPUS["h100-80gb"]
    one, two = (plan_run(given, gpu, n).arms[0] for n in (1, 2))
    assert (two.setup.rows, two.setup.devices) == (4, 2)
    assert two.flops == pytest.approx(one.flops)
    slow, fast = (one.seconds(gpu, utilisation) for utilisation in (0.2, 0.4))
    assert slow
    assert fast
    assert slow > fast
    assert f"{gpu.flops / 1e12:.0f} TFLOP/s" in plan_text(
        plan_run(given.model_copy(update={"precision": "bf16"}), gpu), 0.4
    )  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"training\.batch_size=8 does not divide by the 3 processes"):
        plan_run(given, gpu, 3)


def test_an_arm_that_cannot_be_planned_leaves_the_others(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(shape: Any, *args: Any) -> Any:
        raise NotImplementedError("an operation without data")

    read = {"name": "read", "learning_rates": [1e-3], "train": {"corda": {"rank": 2}}}
    arms = [read, {"name": "x", "method": "full", "learning_rates": [1e-3]}]
    config = small_config(base, arms=arms, data={"old": {"source": "self", "number": 4}, "length": 32})
    plan = plan_run(config, ROOMY)
    assert [arm.name for arm in plan.arms] == ["x"]
    assert plan.failed == {"read": "arm 'read': corda reads text before it trains, so it cannot be planned"}
    assert "the 1 arms that can be planned, of 2: " in plan_text(plan, 0.4)
    monkeypatch.setattr("experiments.plan.plan.trace", fails)
    plan = plan_run(small_arm(base), ROOMY)
    assert plan.failed == {"x": "NotImplementedError: an operation without data"}
    assert "x: cannot be planned (NotImplementedError" in plan_text(plan, 0.4)


@pytest.mark.parametrize("path", sorted((SHIPPED / "paper").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_paper_s_recipes_have_its_models(path: Path) -> None:
    """On device meta, without the Hub: a layer of Llama 3.1 8B has 218 million parameters."""
    given = load_config(f"paper/{path.stem}")
    check_fields(given)
    for arm in given.arms:
        counts = build(given, arm, Precision("bf16")).counts
        copies = 0 if arm.method in ("full", "partial") else int(arm.control.layers)  # type: ignore[arg-type]
        assert counts.base == 8_030_261_248
        assert counts.added == pytest.approx(copies * 218_112_000, rel=1e-3)
        assert arm.learning_rates == (5e-5,)


COLUMNS = {  # by the cards of the data sets and the authors' code
    "openmath2": {"problem", "generated_solution", "expected_answer"},
    "opencoder": {"instruction", "output"},
    "llama3-syne": {"text"},
}


def test_the_paper_s_recipes_read_columns_that_their_data_has() -> None:
    parts, folders = [], []
    for name, columns in COLUMNS.items():
        for source in load_config(f"paper/{name}").data.new:
            assert isinstance(source, HuggingFace)
            assert set(source.shape(sorted(columns), source.name).columns) == columns
            parts, folders = [*parts, source.subset], [*folders, *source.files]
    assert {*parts} == {None, "educational_instruct", "evol_instruct", "mceval_instruct", "package_instruct"}
    cards = {"book-cn", "encyclopedia-cn", "qa_forum-cn", "web-cn", "code-en", "math-en", "synthesis-en"}
    assert {pattern.split("/")[1] for pattern in folders} == cards


@pytest.mark.parametrize(
    ("name", "arm", "layers", "gate", "divergence"),
    [
        ("openmath2", "lerp16-mse", 16, "lerp", "mse"),
        ("opencoder", "lerp8-mse", 8, "lerp", "mse"),
        ("llama3-syne", "dlerp16-cosine", 16, "dlerp", "cosine"),
    ],
)
def test_the_paper_s_recipes_have_its_set_ups(name: str, arm: str, layers: int, gate: str, divergence: str) -> None:
    """Table 4: rates from 5e-5 down to 1e-5, decay .1, clipped at 1, rows of 8,192, thousands of them in a step."""
    given = load_config(f"paper/{name}")
    own, training = next(one for one in given.arms if one.name == arm), given.training
    control = own.control
    assert (control.layers, control.interpolation, control.divergence) == (layers, gate, divergence)
    assert control.alpha == ("learned" if name == "llama3-syne" else "fixed")
    assert (control.divergence_weight, control.structure) == (1, "concat")
    assert training.schedule == "cosine"
    assert own.learning_rates[0] * training.min_lr_ratio == pytest.approx(1e-5)
    assert (training.weight_decay, training.max_grad_norm, given.data.length) == (0.1, 1.0, 8192)
    assert training.batch_size >= 1000
    assert given.precision == "bf16"


@pytest.mark.slow
def test_a_plan_of_the_paper_s_math_recipe_says_what_fits() -> None:
    """A pass of 8B takes seconds: two arms, and a row for each device, since more rows need a second pass of each."""
    changes = {"data.length": 4096, "training.batch_size": 8}
    given = load_config("paper/openmath2", changes)
    arms = [arm for arm in given.arms if arm.name in ("lerp16-mse", "full")]
    text = plan_text(plan_run(given.model_copy(update={"arms": arms}), GPUS["h100-80gb"], 8), 0.4)
    assert "lerp16-mse: 11.520 B parameters, 3.490 B train (30.3%), 3.490 B added" in text
    assert "DOES NOT FIT" in text  # all weights, on one card
    assert "32,768 tokens" in text


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "control, 8 layers"])
def test_the_plan_is_within_a_tenth_of_the_measured_peak(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2-135M on this machine; the whole table is benchmarks/plan.md."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = runpy.run_path(str(ROOT / "benchmarks" / "plan.py"))
    command = [sys.executable, "benchmarks/plan.py", "--rows", "2", "--length", "128", "--measure", method, "none"]
    env = {**os.environ, **module["ALLOCATOR"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=ROOT)
    args = type("Args", (), {"model": "smollm2-135m-instruct", "precision": "fp32", "rows": 2, "length": 128})
    planned = plan_run(module["config"](method, "none", args), ROOMY).arms[0].peak
    assert planned == pytest.approx(json.loads(done.stdout.splitlines()[-1]), rel=0.1)


def test_measured_peaks_are_planned_again_without_measuring(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed measurements and the sentence on the machine stay; the planned column and the ratios are new."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = runpy.run_path(str(ROOT / "benchmarks" / "plan.py"))
    file, again = tmp_path / "plan.md", module["replanned_table"]
    head = "| method | checkpointing | planned GB | measured GB | planned / measured |\n| --- |\n"
    file.write_text(f"# x\n\nBy a GPU. Planned / measured is 7 to 8.\n\n{head}| full | none | 9 | 0.02 | 450 |\n")
    monkeypatch.setitem(again.__globals__, "WRITTEN", file)
    args = type("Args", (), {"model": base, "precision": "fp32", "rows": 2, "length": 16})
    planned = plan_run(module["config"]("full", "none", args), ROOMY).arms[0].peak / 1e9
    for _ in range(2):  # what it has written is read as well
        file.write_text(again(args))
        ratio = f"{planned / 0.02:.2f}"
        assert f"is {ratio} to {ratio}.\n" in file.read_text()
        assert file.read_text().startswith("By a GPU. Planned again later, by `python benchmarks/plan.py --replan")
        assert file.read_text().count("Planned again") == 1
        assert f"| full | none | {planned:.2f} | 0.02 | {ratio} |" in file.read_text()
