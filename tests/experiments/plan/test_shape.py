"""An arm's model on device meta has the parameters that the real one has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.methods import MethodContext
from experiments.methods.reference import AtLabels
from experiments.models.precision import Precision
from experiments.plan.shape import build
from tests.helpers.engine import OPTIONS
from tests.helpers.small_run import small_arm, small_config, tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", "partial", "control", "stack", "hybrid", "lora", "half", "l2sp"])
def test_counts_and_bytes_are_those_of_the_real_model(method: str, precision: str, base: str) -> None:
    given = small_arm(base, method=method, control={"layers": 2}, options=OPTIONS.get(method, {}))
    using = Precision(precision)
    shape = build(given, given.arms[0], using)
    real: Any = given.arms[0].build().prepare(given.load_base()[0], MethodContext(0, using))
    using.hold_frozen(real)
    for trained in (True, False):
        mine = [p for p in real.parameters() if p.requires_grad == trained]
        assert shape.bytes_of(trained) == sum(p.numel() * p.element_size() for p in mine)
    assert shape.counts.trained == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert shape.counts.total == sum(p.numel() for p in real.parameters())
    assert shape.counts.added == shape.counts.total - shape.counts.base
    assert shape.kept_copies == (1 if method == "l2sp" else 0)
    assert shape.linear_cast() == sum(2 * p.numel() for p in using.linear_parameters(real))


@pytest.mark.parametrize(
    ("train", "loss"),
    [
        ({"full": {}}, ["kl"]),
        ({"partial": {"layers": 2}}, ["asft", "logit_swap"]),
        ({"peft": {"type": "lora", "bias": "all"}}, ["muscle"]),
        ({"control": {"layers": 2}}, ["kl", "prift"]),
        ({"stack": {"layers": 2}}, ["kl"]),
        ({"lora": {}}, ["muscle"]),
        ({"full": {}}, ["dft"]),
    ],
)
def test_copies_of_the_base_are_those_that_loss_terms_keep(train: dict[str, Any], loss: list[str], base: str) -> None:
    """None where the model that trains has the base in it; the passes of the base are named either way."""
    arm = {"name": "x", "learning_rates": [1e-3], "train": train, "loss": loss}
    given = small_config(base, arms=[arm])
    context = MethodContext(0, Precision("bf16"))
    shape = build(given, given.arms[0], context.precision)
    method = given.arms[0].build()
    terms = method.begin(method.prepare(given.load_base()[0], context), context).terms
    copies: list[Any] = [term.base.copy for term in terms if isinstance(term, AtLabels)]
    kept = [p for copy in copies if copy is not None for p in copy.parameters()]
    assert shape.base_copies == sum(p.numel() * p.element_size() for p in kept)
    assert shape.unknown == [f"{name}: its passes of the base model" for name in loss if name != "dft"]


@pytest.mark.parametrize("attention", ["sdpa", "eager", None])
def test_attention_is_computed_as_in_the_run(attention: str | None, base: str) -> None:
    """Eager holds rows for each pair of tokens. Without it the divergence of attention could not be planned."""
    control = {"layers": 2, "divergence": "attention" if attention == "eager" else "mse"}
    given = small_arm(base, method="control", control=control).model_copy(update={"attention": attention})
    shape = build(given, given.arms[0], Precision("fp32"))
    assert shape.model.config._attn_implementation == given.load_base()[0].config._attn_implementation


@pytest.mark.parametrize("options", [{"type": "ia3"}, {"type": "vera", "r": 4}])
def test_an_adapter_of_peft_is_planned_without_values(options: dict[str, Any], base: str) -> None:
    given = small_arm(base, method="peft", options=options)
    shape = build(given, given.arms[0], Precision("fp32"))
    real = given.arms[0].build().prepare(given.load_base()[0], MethodContext(0, Precision("fp32")))
    assert shape.counts.trained == sum(p.numel() for p in real.parameters() if p.requires_grad) > 0
    assert shape.counts.total == sum(p.numel() for p in real.parameters())


def test_an_adapter_that_reads_the_weights_cannot_be_planned(base: str) -> None:
    given = small_arm(base, method="peft", options={"type": "shira", "r": 2})
    with pytest.raises(ConfigError, match="'shira' reads the base's weights, so it cannot be planned"):
        build(given, given.arms[0], Precision("fp32"))


def test_what_reads_text_first_cannot_be_planned(base: str, tmp_path: Path) -> None:
    given = small_arm(base, method="corda")
    with pytest.raises(ConfigError, match="arm 'x': corda reads text before it trains, so it cannot be planned"):
        build(given, given.arms[0], Precision("fp32"))
