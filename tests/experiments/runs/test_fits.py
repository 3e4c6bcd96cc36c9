"""A run that cannot fit is refused before anything is loaded; one that may fit is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.common.errors import RunError
from experiments.plan.accelerators import Device
from experiments.runs import fits
from experiments.runs.fits import check_fits
from experiments.runs.run import run_experiment
from tests.helpers.small_run import small_config, tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


def test_small_runs_are_not_even_traced(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "plan_run", None)
    check_fits(small_config(base))


def test_what_cannot_fit_is_refused_with_the_change(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "here", lambda: Device("a small device", 1e6))
    with pytest.raises(RunError, match=r"(?s)arm 'full': a step needs .* of a small device: .*--force starts it"):
        run_experiment(small_config(base), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_planned_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "here", lambda: Device("a small device", 1e6))
    check_fits(small_config(str(tmp_path)))  # no model there: loading says so
