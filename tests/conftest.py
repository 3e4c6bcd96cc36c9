"""Fixtures for the whole test tree. The markers `slow` and `gpu` are declared in pyproject.toml."""

from __future__ import annotations

import gc
import os

# Before torch is imported: more threads than this only slow tiny models down, and vary the order of sums.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two processes of tests share the cores: spinning would cost both
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a network, and looking for one takes its time

from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import PreTrainedModel

from tests.helpers.families import build

# these take minutes
LONG = (
    "test_notebooks",
    "test_real_model",
    "test_trial",
    "test_run",
    "test_processes",
    "test_posthoc",
    "test_distributed",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that take minutes come first: of two processes neither shall wait for the other's last one."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return LONG.index(name) if name in LONG and item.get_closest_marker("slow") else len(LONG)

    modules: dict[object, int] = {}
    for item in items:
        modules[item.path] = min(place(item), modules.get(item.path, len(LONG)))
    items.sort(key=lambda item: modules[item.path])


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """Training collects garbage several times; what was imported so far need not be looked through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same random state and leaves the global one as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def tiny_model() -> Callable[[str], PreTrainedModel]:
    """Builder of a small random model of a family, on a fixed seed: `tiny_model("llama")`."""
    return build


@pytest.fixture
def tiny_llama() -> PreTrainedModel:
    return build("llama")
