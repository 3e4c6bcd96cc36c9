"""ctrl.initial: what trainers compare the model with, next to the model before training."""

from __future__ import annotations

import copy
import types
import warnings
from typing import Any

import pytest

import ctrl
from tests.helpers.families import perturb
from tests.helpers.tiny_llama import IDS, expanded, tiny


@pytest.mark.parametrize("role", ["ref_model", "teacher_model"])
@pytest.mark.parametrize(
    "case", ["by name", "not trained", "not trained, half", "not trained, other", "a copy", "merged", "ours", "none"]
)
def test_a_trainer_s_own_reference_is_the_model_before_training_or_it_is_said(case: str, role: str) -> None:
    """TRL loads one by name: the base of copies that have trained, or of a merged model that is expanded again.

    SDFT's teacher too is to be the model before training.
    """
    new = case.startswith("not trained")
    model: Any = ctrl.expand(tiny(), ctrl.ControlConfig(layers=2)) if new else expanded()
    made = {"a copy": copy.deepcopy, "merged": ctrl.merge_back, "ours": ctrl.reference, "none": lambda _: None}
    made |= {"not trained, other": lambda _: ctrl.merge_back(expanded()), "not trained, half": lambda _: tiny().half()}
    given = made.get(case, lambda _: tiny())(model)
    args = types.SimpleNamespace(n_gpu=1, **({"teacher_model_kind": "base"} if role == "teacher_model" else {}))
    trainer = types.SimpleNamespace(model=model, compute_loss=lambda: None, args=args, **{role: given})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ctrl.attach(trainer)
    said = [str(w.message) for w in seen]
    assert any("it is not the model as it is now" in one for one in said) == (case == "by name")
    assert any("training does not start at the reference" in one for one in said) == (case == "not trained, other")


def test_a_teacher_that_the_user_chose_may_be_any_model() -> None:
    """A trainer that distils (TRL's DistillationTrainer) has a teacher of the user's."""
    args = types.SimpleNamespace(n_gpu=1)
    trainer = types.SimpleNamespace(model=expanded(), compute_loss=lambda: None, args=args, teacher_model=tiny())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctrl.attach(trainer)


class Unattached:
    """A trainer that nobody attached: its loss needs no divergence."""

    def __init__(self, model: Any, reference: Any, step: int) -> None:
        self.model, self.ref_model = model, reference
        self.args, self.state = types.SimpleNamespace(), types.SimpleNamespace(global_step=step)

    def train(self) -> list[str]:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(2):
                self.model.train().base_model(IDS).last_hidden_state.sum().backward()
        return [str(w.message) for w in seen if "it is not the model as it is now" in str(w.message)]


@pytest.mark.parametrize("settings", [{"structure": "stack"}, {"divergence": "none"}], ids=str)
def test_a_trainer_that_is_not_attached_is_looked_at_as_it_begins(settings: dict[str, Any]) -> None:
    """A resumed one has trained the copies itself, and so has one that has evaluated in between."""
    assert len(Unattached(expanded(**settings), tiny(), 0).train()) == 1
    new = ctrl.expand(tiny(), ctrl.ControlConfig(layers=2, **settings))
    for model, reference, step in (
        (expanded(**settings), tiny(), 5),
        (expanded(**settings), None, 0),
        (new, tiny(), 0),
    ):
        assert not Unattached(model, reference, step).train()


def test_a_training_that_goes_on_keeps_the_model_before_it() -> None:
    """Whoever calls a trainer again, in a notebook for one, has the reference with which it began."""
    model, reference = ctrl.expand(tiny(), ctrl.ControlConfig(layers=2, divergence="none")), tiny()
    assert not Unattached(model, reference, 0).train()
    perturb(model.eval())
    assert not Unattached(model, reference, 0).train()
    model.eval()
    assert len(Unattached(model, tiny(), 0).train()) == 1
