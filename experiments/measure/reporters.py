"""Find the trackers of a training (`report_to`), so that figures of a callback arrive where its losses do."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks


def reporters_of(hook: TrainerCallback, names: str | Sequence[str]) -> list[TrainerCallback]:
    """Return the trackers of the trainer that has called a callback; new ones if none has.

    Transformers gives a callback no way to them. A second one of trackio, or of MLflow with MLFLOW_NESTED_RUN, would
    begin a run of its own. names: as in `report_to`.
    """
    kinds = tuple(get_reporting_integration_callbacks(names))
    frame = inspect.currentframe()
    while frame := frame and frame.f_back:
        callbacks = getattr(frame.f_locals.get("self"), "callbacks", None)
        if isinstance(callbacks, list) and hook in callbacks:
            return [one for one in callbacks if isinstance(one, kinds)]
    return [kind() for kind in kinds]
