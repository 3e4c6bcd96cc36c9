"""The base model's results travel between machines without a common disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.evaluation.cache import FILES, META, BaseCache, CachedSuite
from experiments.records import Record
from experiments.runs.shared_base import SharedBase
from experiments.tracking.tracker import Tracker
from tests.helpers.shared_store import stored, use_shared_store

ENTRY = CachedSuite([Record("new", "sums", "generate", "1", 1, parsed=True)], {"replies": [1]}, 2.5)


class Suite:
    """What the cache needs to know of one."""

    name, version = "new", 1

    def content(self) -> Any:
        return ["questions"]


def cache_of(root: Path, elsewhere: Any) -> BaseCache:
    """A cache of a model that needs no loading."""
    cache = BaseCache.__new__(BaseCache)
    cache.folder, cache.key, cache._elsewhere = root / "cache" / "base", {"weights": "w"}, elsewhere
    cache.folder.mkdir(parents=True, exist_ok=True)
    return cache


def read_by_another(folder: Path) -> CachedSuite | None:
    with Tracker(folder / "two", "demo").run("b") as run:
        cache = cache_of(folder / "two", SharedBase(Tracker(folder / "two", "demo"), run))
        place = cache.place(Suite())  # type: ignore[arg-type]
        assert place is not None
        found = cache.read(place)
        assert sorted(path.name for path in place.glob("*")) == (sorted(FILES) if found else [])
        assert [path.name for path in cache.folder.glob(".copy-*")] == []
        return found


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artifacts of a machine that has measured a suite."""
    artifacts = use_shared_store(tmp_path, monkeypatch)
    tracker = Tracker(tmp_path / "one", "demo")
    with tracker.run("a") as run:
        cache = cache_of(tmp_path / "one", SharedBase(tracker, run))
        place = cache.place(Suite())  # type: ignore[arg-type]
        assert place is not None
        assert cache.read(place) is None
        cache.write(place, Suite(), ENTRY)  # type: ignore[arg-type]
    return artifacts


def test_another_machine_reads_what_the_first_has_measured(sent: Path, tmp_path: Path) -> None:
    assert read_by_another(tmp_path) == ENTRY
    for path in stored(sent, ".json"):
        path.unlink()
    assert read_by_another(tmp_path) == ENTRY  # it has a copy now


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_text(path.read_text().replace("1", "2")),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_what_is_damaged_or_gone_is_measured_again(
    name: str, damage: Callable[[Path], object], sent: Path, tmp_path: Path
) -> None:
    (file,) = stored(sent, f"/{name}")
    damage(file)
    if name == META and file.is_file() and "weights" in file.read_text():
        file.write_text(file.read_text().replace('"w"', '"v"'))  # of another model
    assert read_by_another(tmp_path) is None


def test_a_local_store_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(tmp_path, "demo")
    with tracker.run("a") as run:
        cache = cache_of(tmp_path, SharedBase(tracker, run))
        place = cache.place(Suite())  # type: ignore[arg-type]
        assert place is not None
        cache.write(place, Suite(), ENTRY)  # type: ignore[arg-type]
        assert cache.read(place) == ENTRY
    assert not list(run.journal.folder.rglob("base_cache*"))
