"""A study is checked on its base model and data before its first trial."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.studies.checks import _against, _idle, check_inputs
from experiments.studies.config import Constraint, Objective
from experiments.studies.load import parse_study
from tests.helpers.byte_level import byte_base
from tests.helpers.tiny_study import ARMS, study_values, tiny_study


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return byte_base(tmp_path_factory.mktemp("base"))


def test_layers_beyond_the_model_are_found_in_any_trial(base: str, tmp_path: Path) -> None:
    deep = {"deep": {"arms.0.method": "control", "arms.0.control": {"layers": 9}}}
    search = {"arm": {"kind": "arms", "arms": ARMS | deep}}
    with pytest.raises(ConfigError, match=r"arm 'deep': layers=9: the model has 2 layers"):
        check_inputs(tiny_study(base, search=search), tmp_path, lambda text: None)
    check_inputs(tiny_study(base), tmp_path, lambda text: None)
    assert not list(tmp_path.iterdir())


def test_each_base_model_is_loaded_once(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial's own base model may lack the layers that another has."""
    other = byte_base(tmp_path / "other")
    search = {"base_model": {"kind": "choice", "values": [base, other]}, "arm": {"kind": "arms", "arms": ARMS}}
    loaded: list[str] = []
    study = tiny_study(base, search=search)
    from experiments.studies import checks

    original = checks.read_inputs
    monkeypatch.setattr(
        checks, "read_inputs", lambda config, *rest: (loaded.append(config.base_model), original(config, *rest))[1]
    )
    check_inputs(study, tmp_path, lambda text: None)
    assert loaded == [base, other]


RATIO = {"kind": "float", "path": "training.min_lr_ratio", "low": 0.1, "high": 0.5, "step": 0.1}  # .1 is the default
MARGIN = {"kind": "choice", "path": "arms.0.control.margin", "values": [0.0, 0.1, 0.2]}
OLD, SGD = {"source": "self", "number": 8}, {"optim": "sgd"}
CONTROL = {"kind": "arms", "arms": {"control": ARMS["control"]}}
MARGINS: dict[str, Any] = {
    "kind": "arms", "arms": {"a": ARMS["control"], "b": {**ARMS["control"], "arms.0.control.margin": 0.2}}
}  # fmt: skip
COSINE = {"kind": "arms", "arms": {"cosine": {**ARMS["control"], "arms.0.control.divergence": "cosine"}}}


@pytest.mark.parametrize(
    ("search", "idle"),
    [
        ({"x": RATIO}, True),
        ({"x": {**RATIO, "low": 0.2}}, None),  # refused as a field without effect in all trials
        ({"x": RATIO, "y": {"kind": "choice", "path": "training.schedule", "values": ["constant", "cosine"]}}, False),
        ({"x": RATIO, "y": {"kind": "choice", "path": "training.schedule", "values": ["constant", "linear"]}}, True),
        ({"a": CONTROL, "x": MARGIN}, True),
        ({"a": {"kind": "arms", "arms": CONTROL["arms"] | COSINE["arms"]}, "x": MARGIN}, False),  # type: ignore[operator]
        ({"x": {"kind": "choice", "path": "training.schedule", "values": ["constant", "cosine"]}}, False),
        ({"x": MARGINS}, "'b' of 'x': arm 'b': control.margin has no effect"),
        ({"x": MARGINS, "y": {**MARGIN, "path": "arms.0.control.divergence", "values": ["mse", "cosine"]}}, False),
        ({"x": {"kind": "arms", "arms": dict.fromkeys("ab", MARGINS["arms"]["b"])}}, None),
        (
            {"x": {"kind": "choice", "path": "training.rates", "values": [{}, {"alpha": 3.0}]}},
            "rates.alpha has no effect",
        ),
        (
            {"x": {"kind": "arms", "arms": {"a": ARMS["control"], "b": {**ARMS["control"], "data.old": OLD}}}},
            "'b' of 'x': data.old is read by no arm",
        ),
        (
            {
                "x": {"kind": "arms", "arms": {name: {**ARMS["control"], "data.old": OLD} for name in "ab"}},
                "y": {"kind": "choice", "path": "data.replay", "values": [0.0, 0.2]},
            },
            False,
        ),
        (
            {"x": {"kind": "choice", "path": "training.arguments", "values": [SGD, {**SGD, "adam_beta1": 0.5}]}},
            "training.arguments: adam_beta1 is not read by optim 'sgd'",
        ),
    ],
)
def test_a_dimension_that_changes_nothing_is_refused_if_a_pick_is_the_default(
    search: dict[str, Any], idle: bool | str | None, base: str
) -> None:
    """All trials would be alike, or two, and the report would show noise as its effect."""
    said = "in all trials" if idle is None else r"search: 'x' changes nothing in any trial: .* has no effect"
    said = f"search: .*{idle}" if isinstance(idle, str) else said
    with pytest.raises(ConfigError, match=said) if idle is not False else nullcontext():
        tiny_study(base, search=search)
    if idle:
        parse_study(study_values(base, search=search), begun=True)


@pytest.mark.parametrize(
    ("figure", "direction", "fault"),
    [
        ("gain", "minimize", "minimize 'gain', but gain is to be maximized: turn one round"),
        ("perplexity_drift", "maximize", "but perplexity_drift is to be minimized"),
        ("retention + nfr", "maximize", "maximize 'retention . nfr', but nfr is to be minimized"),
        ("retention/capitals", "minimize", "but retention/capitals is to be maximized"),
        ("gain + retention", "maximize", ""),
        ("cost/seconds", "minimize", ""),
    ],
)
def test_an_objective_points_to_what_is_better(figure: str, direction: str, fault: str) -> None:
    found = list(_against(Objective.model_validate({"figure": figure, "direction": direction})))
    assert len(found) == bool(fault)
    assert re.search(fault, "".join(found))


@pytest.mark.parametrize(
    ("constraint", "fault"),
    [
        ({"figure": "kl", "min": 0.1}, "min=0.1 on 'kl' keeps the trials that are worse, .* minimized: give max"),
        ({"figure": "retention", "max": 0.9}, "max=0.9 on 'retention' .* maximized: give min"),
        ({"figure": "retention/capitals", "max": 0.9}, "max=0.9 on 'retention/capitals'"),
        ({"figure": "cost/seconds", "min": 5}, "min=5 on 'cost/seconds'"),
        ({"figure": "forgetting", "max": 5}, "max=5 on 'forgetting': it is at most 1, so this always holds; for 5 %"),
        ({"figure": "kept_accuracy", "min": 70}, "min=70 on 'kept_accuracy': .* never holds"),
        ({"figure": "retention", "min": -0.02}, r"min=-0.02 on 'retention': it is at least 0, so this always holds$"),
        ({"figure": "kept_accuracy", "min": 0}, "it is at least 0, so this always holds"),
        ({"figure": "kl", "max": -1}, "it is at least 0, so this never holds"),
        (
            {"figure": "parse_failures", "max": 5},
            "max=5 on 'parse_failures': it is at most 1, so this always holds; for",
        ),
        (
            {"figure": "nfr", "min": 0.01, "max": 5},
            "max=5 on 'nfr': it is at most 1, so this always holds; for 5 % write",
        ),
        ({"figure": "kl", "max": 0}, ""),
        ({"figure": "forgetting", "max": -0.1}, ""),
        ({"figure": "kept_accuracy", "min": 0.5, "max": 1}, ""),
        ({"figure": "kl", "max": 0.1}, ""),
        ({"figure": "retention", "min": 0.9, "max": 1.1}, ""),
        ({"figure": "cost/tokens", "min": 5}, ""),
    ],
)
def test_a_constraint_bounds_the_side_that_is_worse_within_the_figures_values(
    constraint: dict[str, object], fault: str
) -> None:
    found = list(_idle(Constraint.model_validate(constraint)))
    assert len(found) == bool(fault)
    assert re.search(fault, "".join(found))
