"""The base's log-probabilities on disk: the same KL, computed once, and never a reason for a run to fail."""

from __future__ import annotations

import multiprocessing
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.files import UMASK
from experiments.config import ExperimentConfig
from experiments.data.sources import ReasoningGym
from experiments.evaluation import log_probs
from experiments.evaluation.cache import BaseCache
from experiments.evaluation.evaluate import Evaluation
from experiments.evaluation.log_probs import PATTERN, stored
from experiments.evaluation.suites import drift
from experiments.records import Record
from tests.helpers.option_scores import FP32
from tests.helpers.small_run import draw_suites

pytestmark = pytest.mark.slow


def tensors(seed: int = 0) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {i: torch.randn(n, 50, generator=generator).log_softmax(-1) for i, n in ((2, 3), (0, 7), (10, 1))}


def never() -> dict[int, Tensor]:
    raise AssertionError("computed once more")


def same(found: dict[int, Tensor], expected: dict[int, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[i], expected[i]) for i in expected)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "base" / "entry" / "log_probs-0.safetensors"


@pytest.fixture(autouse=True)
def told_anew() -> None:
    log_probs._warn.cache_clear()


class TestFile:
    def test_the_second_time_it_is_read_bit_for_bit(self, path: Path) -> None:
        assert same(stored(path, tensors), tensors())
        assert same(stored(path, never), tensors())
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~UMASK

    def test_those_of_other_replies_are_computed_again(self, path: Path) -> None:
        other = path.with_name("log_probs-1.safetensors")
        stored(other, lambda: tensors(1))
        other.rename(path)
        assert same(stored(path, tensors), tensors())
        assert same(stored(path, never), tensors())

    @pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
    def test_it_is_mapped_and_not_held_in_memory(self, path: Path) -> None:
        for found in (stored(path, tensors), stored(path, never)):  # also where it was computed
            maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
            ranges = [[int(end, 16) for end in words[0].split("-")] for words in maps if words[-1] == str(path)]
            assert all(any(low <= t.data_ptr() < high for low, high in ranges) for t in found.values())

    @pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other"])
    def test_a_damaged_file_is_computed_again_with_a_warning(
        self, path: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        stored(path, tensors)
        whole = path.read_bytes()
        torn = {
            "cut": whole[: len(whole) // 2],
            "changed": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
            "empty": b"",
            "other": b"not this format at all, but long enough",
        }[damage]
        path.unlink()
        path.write_bytes(torn)
        assert same(stored(path, tensors), tensors())
        assert f"{path} is damaged" in caplog.text
        assert path.read_bytes() == whole

    def test_beyond_the_limit_nothing_is_written_and_that_is_said_once(
        self, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stored(path, tensors)
        monkeypatch.setattr(log_probs, "LIMIT", path.stat().st_size + 2000)  # 2,200 bytes of numbers in each file
        other = path.parents[1] / "other" / path.name
        for _ in range(2):
            assert same(stored(other, lambda: tensors(1)), tensors(1))
        assert not other.exists()
        assert caplog.text.count("delete old ones") == 1
        assert same(stored(path, never), tensors())  # what is there is still read
        path.unlink()
        assert same(stored(other, lambda: tensors(1)), tensors(1))
        assert other.exists()

    def test_a_full_disk_is_a_warning(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """No file of this process may pass 1,000 bytes: writing then fails as on a full disk."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            assert same(stored(path, tensors), tensors())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert f"{path} cannot be written" in caplog.text
        assert [p.name for p in path.parent.iterdir()] == [f"{path.name}.lock"]

    def test_two_processes_compute_once_between_them(self, path: Path) -> None:
        context = multiprocessing.get_context("fork")
        queue, start = context.Queue(), context.Barrier(2)
        processes = [context.Process(target=_store, args=(path, start, queue)) for _ in range(2)]
        for process in processes:
            process.start()
        assert sorted(queue.get(timeout=60) for _ in processes) == [(0, True), (1, True)]
        for process in processes:
            process.join()


def _store(path: Path, start: Any, queue: Any) -> None:
    computed = []
    start.wait()
    found = stored(path, lambda: computed.append(1) or tensors())  # type: ignore[func-returns-value]
    queue.put((len(computed), same(found, tensors())))


class TestDrift:
    def prepared(
        self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, tmp_path: Path
    ) -> Evaluation:
        suites = draw_suites(config, tokenizer, [ReasoningGym(name="chain_sum").held_out(4, 0)])
        return suites.measure_base(model, FP32, BaseCache(tmp_path, model, tokenizer, FP32))[0]

    def test_kl_of_a_moved_model_is_that_without_a_cache(
        self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, tmp_path: Path
    ) -> None:
        suites = draw_suites(config, tokenizer, [ReasoningGym(name="chain_sum").held_out(4, 0)])
        uncached = suites.prepare(model, FP32)
        cached = [self.prepared(config, tokenizer, model, tmp_path) for _ in range(2)]  # it writes, and then reads
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.normal_()
        expected = values(uncached.evaluate(model, FP32, ("drift",), progress=False))
        assert min(expected) > 1e-6
        for evaluation in cached:
            found = values(evaluation.evaluate(model, FP32, ("drift",), progress=False))
            assert found == pytest.approx(expected, abs=1e-12, rel=1e-9)

    def test_a_later_trial_and_a_continued_run_do_not_ask_the_base(
        self,
        config: ExperimentConfig,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        first = self.prepared(config, tokenizer, model, tmp_path)
        monkeypatch.setattr(drift, "reply_log_probs", never)
        monkeypatch.setattr(drift, "base_replies", never)
        trial = self.prepared(config, tokenizer, model, tmp_path)
        suites = draw_suites(config, tokenizer, [ReasoningGym(name="chain_sum").held_out(4, 0)])
        continued = suites.prepare(model, FP32, BaseCache(tmp_path, model, tokenizer, FP32), first.state())
        for evaluation in (trial, continued):
            suite = evaluation.suites["drift"]
            assert isinstance(suite, drift.DriftFromBase)
            assert same(suite.references, first.suites["drift"].references)  # type: ignore[attr-defined]

    def test_other_replies_have_a_file_of_their_own(
        self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, tmp_path: Path
    ) -> None:
        """A run may have kept replies that the cache has not, written by another version of a library."""
        state = self.prepared(config, tokenizer, model, tmp_path).state()
        state["drift"]["replies"][0]["reply"] = [7, 8]
        suites = draw_suites(config, tokenizer, [ReasoningGym(name="chain_sum").held_out(4, 0)])
        evaluation = suites.prepare(model, FP32, BaseCache(tmp_path, model, tokenizer, FP32), state)
        suite = evaluation.suites["drift"]
        assert isinstance(suite, drift.DriftFromBase)
        assert suite.references[0].shape == (2, len(tokenizer))
        assert len(list((tmp_path / "cache" / "base").glob(f"*/{PATTERN}"))) == 2


def values(records: list[Record]) -> list[float]:
    return [record.value for record in records if record.value is not None]
