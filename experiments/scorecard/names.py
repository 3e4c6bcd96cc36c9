"""The names that a figure can have, so that a misspelt one is found before anything runs."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.scorecard.figures import FIGURES, FORMS


def figure_names(
    suites: Iterable[str], kept_tasks: Iterable[str] = (), stream: bool = False, floor: bool = False
) -> list[str]:
    """List the figures that a run with these suites can have, with `retention/TASK` of each kept task and `cost/NAME`.

    Suite lm_eval asks tasks that count as new or as kept, so it gives the figures of both. stream: the run learns the
    tasks of suite `new` one after the other. floor: the A/A floor is measured.
    """
    measured = {"cost", "new", "kept", *suites} if "lm_eval" in suites else {"cost", *suites}
    measured |= {"stream"} if stream and "new" in suites else set()
    measured |= {"floor"} if floor else set()
    members = {"FORM": FORMS, "TASK": tuple(kept_tasks)}
    return [name for figure in FIGURES.values() if figure.suite in measured for name in figure.names(members)]
