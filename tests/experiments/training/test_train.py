"""The engine's own promises: the recorded loss curves, and shortcuts that change no bit."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.utils.import_utils import enable_tf32

from experiments.common import progress
from experiments.models.head import only_label_logits
from experiments.models.precision import Precision
from experiments.training import train as train_module
from experiments.training.callbacks import Hooks, Log, ZeroGradient
from experiments.training.processes import Processes
from experiments.training.train import PRECISION, launcher_precision, products, train_arm, training_arguments
from tests.helpers.engine import (
    GOLDEN,
    GOLDEN_METHODS,
    arm_config,
    config,
    context,
    golden_curve,
    plan,
    train,
)
from tests.helpers.families import SHAPE
from tests.helpers.tiny_llama import expanded, sequences, tiny


def batch() -> dict[str, torch.Tensor]:
    return {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}


def test_logits_at_labels_alone_give_the_same_loss_and_gradient() -> None:
    total = (batch()["labels"][:, 1:] != -100).sum()
    for build in (tiny, expanded):
        whole, part = build(), build()
        one = whole(**batch(), num_items_in_batch=total)
        two = part(**only_label_logits(batch()), num_items_in_batch=total)
        assert two.logits.shape[1] < one.logits.shape[1]
        torch.testing.assert_close(two.loss, one.loss)
        one.loss.backward()
        two.loss.backward()
        for p, q in zip(whole.parameters(), part.parameters(), strict=True):
            if p.grad is not None:
                torch.testing.assert_close(q.grad, p.grad)


def test_frozen_linears_in_bf16_change_no_bit_under_autocast() -> None:
    precision = Precision("bf16")
    results = []
    for hold in (False, True):
        model = expanded()
        cast = precision.hold_frozen(model) if hold else 0
        with precision.autocast():
            out = model(**batch())
        out.loss.backward()
        results.append((out.loss, [p.grad for p in model.parameters() if p.requires_grad]))
        assert (cast > 0) == hold
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(p, q) for p, q in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("method", GOLDEN_METHODS)
def test_ten_step_loss_curves_are_the_recorded_ones(method: str, tmp_path: Path) -> None:
    """Recorded by `python -m tests.helpers.engine`; the tolerance leaves room for other CPUs' fp32 sums."""
    recorded = json.loads((GOLDEN / f"{method}.json").read_text())
    assert len(set(recorded)) == 10
    assert golden_curve(method, tmp_path) == pytest.approx(recorded, rel=1e-4)


def test_without_a_terminal_an_arm_writes_plain_lines_with_its_step_and_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(arm_config("full"), tmp_path / "quick", steps=1, warmup_steps=1)  # no checkpoint, which has a bar of its own
    assert capsys.readouterr() == ("", "")  # less than a minute: nothing, and nothing of Trainer's own
    monkeypatch.setattr(progress, "BETWEEN_LINES", 0.0)
    train(arm_config("full"), tmp_path / "slow", steps=3)
    said = capsys.readouterr()
    assert said.out == ""
    pattern = r"^x: (\d) of 3 steps, (?:about \d+ s left, )?loss \d\.\d{3}$"
    assert re.findall(pattern, said.err, re.MULTILINE) == ["1", "2", "3"]


def test_several_gpus_without_a_launcher_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: 2))
    arm = arm_config("full")
    arguments = training_arguments(plan(config(arm), tmp_path), context())
    assert arguments._n_gpu == 1
    assert "save_total_limit" not in {k for k, v in vars(arguments).items() if v}


@pytest.mark.parametrize("before", [None, "fp16"])
def test_a_run_leaves_the_precision_of_other_trainers_alone(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Trainer made later in the same notebook would else train in bf16."""
    monkeypatch.delenv(PRECISION, raising=False)
    if before:
        monkeypatch.setenv(PRECISION, before)
    with launcher_precision(bf16=True):
        assert os.environ[PRECISION] == "bf16"
    assert os.environ.get(PRECISION) == before
    with pytest.raises(ZeroDivisionError, match="division"), launcher_precision(bf16=False):
        1 / 0  # noqa: B018
    assert os.environ.get(PRECISION) == before


def test_fp32_of_training_does_not_reach_evaluations_or_later_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer sets tf32 for the whole process, once; the base was measured without it, and each arm trains with it."""

    def with_tf32(*args: Any) -> Any:
        made = training_arguments(*args)
        enable_tf32(True)
        return made

    monkeypatch.setattr(train_module, "training_arguments", with_tf32)
    arm, using, before = arm_config("full"), context(), products()
    for name in ("first", "second"):
        seen: list[str] = []
        method, model = arm.build(), tiny()
        hooks = Hooks(lambda model: seen.append(products()), lambda *_: None, lambda *_: seen.append(products()))  # noqa: B023
        planned = plan(config(arm, steps=2), tmp_path / name)
        train_arm(method.prepare(model, using), method.begin(model, using), using, planned, hooks)
        assert set(seen) == {before, "tf32"}, name  # evaluations, and the log of training
        assert products() == before


def test_trainers_closing_line_is_not_logged() -> None:
    """After a resume its mean loss and its seconds are those of the steps since."""
    seen: list[tuple[int, dict[str, float]]] = []
    state = SimpleNamespace(global_step=6)
    for logs in ({"loss": 1.5, "epoch": 1.0}, {"train_loss": 10.5, "train_runtime": 3.0, "epoch": 1.0}):
        Log(lambda step, logs: seen.append((step, logs))).on_log(None, state, None, logs=logs)
    assert seen == [(6, {"loss": 1.5, "epoch": 1.0})]


def test_a_gradient_that_stays_exactly_0_is_said_once(recwarn: pytest.WarningsRecorder) -> None:
    norms = [1.0, *[0.0] * 9, 0.5, *[0.0] * 30]
    watch = ZeroGradient("full 1e+06")
    for step, norm in enumerate(norms, start=1):
        watch.on_log(None, SimpleNamespace(global_step=step), None, logs={"grad_norm": norm})
    watch.on_log(None, SimpleNamespace(global_step=99), None, logs={"train_loss": 1.0})
    [said] = [str(warning.message) for warning in recwarn]
    assert said.startswith("full 1e+06: the gradient has been exactly 0 for 10 steps, up to step 21: nothing trains")


def test_tensors_that_no_gradient_reaches_are_told_once(recwarn: pytest.WarningsRecorder) -> None:
    model, watch = (
        torch.nn.ModuleDict({"used": torch.nn.Linear(2, 2), "idle": torch.nn.Linear(2, 2)}),
        ZeroGradient("x"),
    )
    model["used"](torch.ones(2)).sum().backward()
    for _ in range(2):
        watch.on_pre_optimizer_step(None, None, None, model=model)
    [said] = [str(warning.message) for warning in recwarn]
    assert said.startswith("x: no gradient reaches 2 of the tensors that train")
    assert said.endswith("idle.weight, idle.bias")


@pytest.mark.parametrize("method", ["full", "control", "kl on replayed and control", "dft on control"])
def test_a_step_is_the_same_however_it_is_cut(method: str, tmp_path: Path) -> None:
    """Rows of unlike length in micro-batches of 4, 2 (3 is rounded down) and 1: the same losses and weights."""
    whole, *cut = (train(arm_config(method), tmp_path / str(most), steps=3, micro_batch=most) for most in (None, 3, 1))
    for part in cut:
        for step, logs in whole.logs.items():
            assert part.logs[step]["loss"] == pytest.approx(logs["loss"], rel=1e-5)
            assert part.logs[step]["grad_norm"] == pytest.approx(logs["grad_norm"], rel=1e-3)
            assert part.logs[step]["tokens_seen"] == logs["tokens_seen"]
            for name in (name for name in logs if name.startswith("layers/")):
                assert part.logs[step][name] == pytest.approx(logs[name], rel=1e-4)


def test_what_a_model_adds_to_its_loss_counts_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The balance of experts is that of a pass, so cut steps differ a little; it was added once per micro-batch."""
    shape = {**SHAPE, "vocab_size": tiny().config.vocab_size, "max_position_embeddings": 64}
    balanced = MixtralConfig(**shape, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.5)
    monkeypatch.setattr("tests.helpers.engine.tiny", lambda: seeded(balanced))
    for method in ("full", "control"):
        one = {"steps": 1, "warmup_steps": 1}
        whole, cut = (train(arm_config(method), tmp_path / f"{method}{m}", micro_batch=m, **one) for m in (None, 1))
        assert whole.logs[1]["aux_loss"] > 0.5
        for name, near in (("lm_loss", 1e-5), ("aux_loss", 0.1), ("loss", 0.05), ("grad_norm", 0.1)):
            assert cut.logs[1][name] == pytest.approx(whole.logs[1][name], rel=near)
        added = whole.logs[1]["loss"] - whole.logs[1]["lm_loss"] - whole.logs[1].get("divergence", 0.0)
        assert whole.logs[1]["aux_loss"] == pytest.approx(added, rel=1e-5)


def seeded(shape: MixtralConfig) -> MixtralForCausalLM:
    torch.manual_seed(0)
    return MixtralForCausalLM(shape)


@pytest.mark.parametrize(
    ("count", "most", "expected"), [(1, None, (24, 1)), (1, 8, (8, 3)), (2, 8, (6, 2)), (8, 8, (3, 1)), (1, 7, (6, 4))]
)
def test_a_step_has_the_same_rows_on_any_number_of_devices(
    count: int, most: int | None, expected: tuple[int, int], tmp_path: Path
) -> None:
    processes = Processes(count)
    training = config(arm_config("full"), batch_size=24, micro_batch=most).training
    assert processes.cut(training) == expected
    assert count * expected[0] * expected[1] == training.step_rows == 24
