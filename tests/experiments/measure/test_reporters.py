"""Figures of a callback go to the trainer's own trackers."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from experiments.measure.reporters import reporters_of


class Tracker(TrainerCallback):
    """A tracker, as `report_to` names them."""


class Hook(TrainerCallback):
    found: tuple[TrainerCallback, ...] = ()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.found = tuple(reporters_of(self, ["seen"]))


def test_the_trackers_are_those_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one began a second run."""
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "seen", Tracker)
    hook, own, other = Hook(), Tracker(), TrainerControl()
    handler = CallbackHandler([DefaultFlowCallback, own, hook], None, None, None, None)
    handler.on_train_begin(TrainingArguments(report_to=[]), TrainerState(), other)
    assert hook.found == (own,)
    (new,) = reporters_of(hook, ["seen"])  # nobody calls
    assert type(new) is Tracker
    assert new is not own
    assert reporters_of(hook, []) == []
