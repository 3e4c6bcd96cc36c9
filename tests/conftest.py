"""Fixtures for the whole test tree. The markers `slow` and `gpu` are declared in pyproject.toml."""

from __future__ import annotations

import gc
import os

# Before torch is imported: more threads than this only slow tiny models down, and vary the order of sums.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two processes of tests share the cores: spinning would cost both
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a network, and looking for one takes its time

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from transformers import PreTrainedModel

from experiments.tracking import client
from tests.helpers.families import build
from tests.helpers.longest import LONGEST
from tests.helpers.stores import copied
from tests.helpers.thinned import EVERY, THINNED

TESTS = Path(__file__).parent
MANY = {f"{file}::{test}" for file, tests in THINNED.items() for test in tests}
hypothesis.settings.register_profile("no deadline", deadline=None)  # of 200 ms, which a busy machine misses
hypothesis.settings.load_profile("no deadline")

for kind in (torch.cuda, torch.xpu, torch.mtia):
    if not kind.is_available():  # else torch notes each seed for a later use of the device, with a stack trace: 0.6 ms
        kind.manual_seed_all = lambda seed: None  # type: ignore[assignment]


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cases of long tests go to the slow tier, then files that take minutes come first.

    Of two processes neither shall wait for the other's last file.
    """
    counts: Counter[str] = Counter()
    for item in items:
        name = item.nodeid.removeprefix(f"{TESTS.name}/").partition("[")[0]
        if name in MANY and not item.get_closest_marker("slow"):
            if counts[name] % EVERY:
                item.add_marker("slow")
            counts[name] += 1
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    places = {TESTS / file: place for place, file in enumerate(LONGEST) if TESTS / file in slow}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """Training collects garbage several times; what was imported so far need not be looked through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _stores_are_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Making one takes more than a second."""
    with pytest.MonkeyPatch.context() as patch:
        first = tmp_path_factory.mktemp("store") / "mlflow.db"
        patch.setattr(client, "_create_store", copied(client._create_store, first))
        yield


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
