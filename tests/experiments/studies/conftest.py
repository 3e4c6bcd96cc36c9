"""A study with the planted truth of the paper's table 5; its figures take a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.studies.queue import Store
from tests.helpers.planted_study import MERGED, SOME, synthetic_store


@pytest.fixture(scope="session")
def some(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """A finished study of five arms, and its root."""
    root = tmp_path_factory.mktemp("some")
    return synthetic_store(root, SOME, question="Does <the> order hold?", posthoc=MERGED), root
