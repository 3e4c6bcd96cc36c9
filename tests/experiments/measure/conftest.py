"""A tiny base, one measurement of models of every kind, and a server that is never waited for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.measure import endpoint
from experiments.measure.run import Measurement, measure
from tests.helpers.measured import (
    SMALL,
    adapter_folder,
    expansion_folder,
    model_folder,
    other_family_folder,
    other_tokenizer_folder,
    published_folder,
    resized_folder,
    training_folder,
)
from tests.helpers.reply_server import ReplyServer, reply, serving


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "WAIT", 0.001)
    monkeypatch.delenv(endpoint.KEY, raising=False)


@pytest.fixture
def echo() -> Iterator[ReplyServer]:
    """A server that answers with the question in capitals."""
    with serving(lambda body: reply(body["messages"][-1]["content"].upper())) as server:
        yield server


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("measured") / "base")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, base: str) -> dict[str, str]:
    """By name the folder of a model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "same": model_folder(folder / "same"),
        "perturbed": model_folder(folder / "perturbed", noise=0.2),
        "adapter": adapter_folder(folder / "adapter", base),
        "expansion": expansion_folder(folder / "expansion"),
        "published": published_folder(folder / "published"),
        "trained": training_folder(folder / "trained"),
        "tokens": other_tokenizer_folder(folder / "tokens"),
        "resized": resized_folder(folder / "resized"),
        "family": other_family_folder(folder / "family"),
    }


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlruns")


@pytest.fixture(scope="session")
def measured(base: str, models: dict[str, str], root: Path) -> Measurement:
    named = [f"{name}={folder}" for name, folder in models.items()]
    return measure(base, named, precision="fp32", root=root, changes=SMALL, say=lambda text: None)
