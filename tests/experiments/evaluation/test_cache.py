"""The base's results on disk: when they are used again, when not, and what damage does."""

from __future__ import annotations

import dataclasses
import importlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from experiments.config import ExperimentConfig
from experiments.data.items import Item, NewTask
from experiments.data.matching import exact_match
from experiments.evaluation.cache import BaseCache, CachedSuite
from experiments.evaluation.evaluate import Baseline, Evaluation
from experiments.evaluation.suites import SUITES as ALL_SUITES
from experiments.evaluation.suites.new_task import NewTaskSuite
from experiments.evaluation.suites.text import TextSuite
from experiments.models.base import load_base
from experiments.models.precision import Precision
from experiments.records import Record
from experiments.runs.data import ExperimentData
from tests.helpers.byte_level import CHATML, byte_tokenizer
from tests.helpers.option_scores import BF16, FP32
from tests.helpers.small_run import draw_suites, make_suite, small_config, small_values

pytestmark = pytest.mark.slow

SUITES = ["new", "kept", "drift", "text"]


def measure(base: str, root: Path, /, **changes: Any) -> Baseline:
    """What a run does with its base. changes: of the config's evaluation section, and `seed`."""
    model, tokenizer = load_base(base)
    config = _config(base, **changes)
    suites = draw_suites(config, tokenizer, ExperimentData(config, tokenizer).tasks)
    return suites.measure_base(model, FP32, BaseCache(root, model, tokenizer, FP32))[1]


def _config(base: str, /, seed: int = 0, **changes: Any) -> ExperimentConfig:
    return small_config(base, seed=seed, evaluation=small_values(base)["evaluation"] | changes)


@pytest.fixture(scope="module")
def filled(base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Baseline]:
    """A root whose cache has the base's results; the tests below only add to it."""
    root = tmp_path_factory.mktemp("root")
    return root, measure(base, root)


def test_the_second_time_nothing_is_measured(
    base: str, filled: tuple[Path, Baseline], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, first = filled
    assert first.measured == SUITES
    monkeypatch.setattr(Evaluation, "evaluate", None)  # would fail if it were called
    second = measure(base, root)
    assert second.measured == []
    assert second.records == first.records
    assert second.seconds == first.seconds > 0


def places(base: str, root: Path, /, precision: Precision = FP32, **changes: Any) -> dict[str, Path | None]:
    model, tokenizer = load_base(base)
    config = _config(base, **changes)
    suites = draw_suites(config, tokenizer, ExperimentData(config, tokenizer).tasks)
    cache = BaseCache(root, model, tokenizer, precision)
    return {name: cache.place(suite) for name, suite in suites.suites.items()}


def test_results_of_another_gpu_are_others(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for own in ({}, {"gpu": "L4"}, {"gpu": "A100"}):
        monkeypatch.setattr("experiments.evaluation.cache.gpu_of", lambda model, own=own: own)
        found.append(places(base, tmp_path)["kept"])
    assert len(set(found)) == 3


def test_results_in_another_arithmetic_are_others(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `precision: fp32`, a setting of torch or of a library below it may shorten the mantissa of products."""
    found = [places(base, tmp_path)["kept"]]
    try:
        for how in ("high", "medium", "highest"):
            torch.set_float32_matmul_precision(how)
            found.append(places(base, tmp_path)["kept"])
    finally:
        torch.set_float32_matmul_precision("highest")
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    found.append(places(base, tmp_path)["kept"])
    assert found[0] == found[3]
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        ({}, []),
        ({"bos": True}, ["new", "kept", "drift", "text"]),  # add_bos_token
        ({"template": CHATML}, ["new", "kept", "drift"]),
        ({"eos": "<s>"}, ["new", "drift"]),  # kept tasks write no reply
    ],
    ids=str,
)
def test_what_a_tokenizer_makes_of_prompts_counts(other: dict[str, Any], counts: list[str], base: str) -> None:
    """Vocabulary and weights are the same: only what is read differs."""
    config, task = _config(base), NewTask("sums", (Item("1 + 1 =", "2"),), exact_match)
    usual, changed = (
        byte_tokenizer(**{"template": None, "eos": "</s>", **more})  # type: ignore[arg-type]
        for more in ({}, other)
    )
    for name in SUITES:
        first, second = (make_suite(ALL_SUITES[name], config, one, [task]).content() for one in (usual, changed))
        assert (first != second) == (name in counts), name


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"bootstrap": 200, "every": 3}, []),
        ({"seed": 1}, ["new", "kept", "drift"]),  # drift: the questions of the new task are others
        ({"new_items": 5}, ["new", "drift"]),
        ({"kept_items": 5}, ["kept"]),
        ({"kept_tasks": ["agreement"]}, ["kept"]),
        ({"reply_tokens": 5}, ["drift"]),
        ({"new_replies": 1}, ["drift"]),
        ({"perplexity_tokens": 70}, ["text"]),
        ({"precision": BF16}, SUITES),
    ],
    ids=lambda value: " ".join(value) or "nothing",  # the same in every process of the tests
)
def test_what_is_changed_lies_elsewhere(base: str, tmp_path: Path, changes: dict[str, Any], missed: list[str]) -> None:
    before, after = places(base, tmp_path), places(base, tmp_path, **changes)
    assert [name for name in SUITES if before[name] != after[name]] == missed


def test_weights_code_and_content_count(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_base(base)
    suite = make_suite(TextSuite, small_config(base), tokenizer)
    first = BaseCache(tmp_path, model, tokenizer, FP32).place(suite)
    assert first == BaseCache(tmp_path, load_base(base)[0], tokenizer, FP32).place(suite)
    model.name_or_path = ""  # no longer as it was loaded
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    assert BaseCache(tmp_path, model, tokenizer, FP32).place(suite) != first
    monkeypatch.setattr(TextSuite, "version", TextSuite.version + 1)
    assert BaseCache(tmp_path, load_base(base)[0], tokenizer, FP32).place(suite) != first


def test_code_of_a_models_own_counts(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With trust_remote_code a base has files of Python: edited, it answers otherwise with the same weights."""
    model, tokenizer = load_base(base)
    assert "code" not in BaseCache(tmp_path, model, tokenizer, FP32).key
    helper = tmp_path / "own_layers.py"
    helper.write_text("SCALE = 1")
    code = "from transformers import LlamaForCausalLM\nimport own_layers\n\nclass Own(LlamaForCausalLM):\n    pass\n"
    (tmp_path / "own_modelling.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = importlib.import_module("own_modelling").Own(model.config)
    own.load_state_dict(model.state_dict())
    first = BaseCache(tmp_path, own, tokenizer, FP32).key
    assert BaseCache(tmp_path, own, tokenizer, FP32).key == first
    helper.write_text("SCALE = 2")
    changed = BaseCache(tmp_path, own, tokenizer, FP32).key
    assert [name for name in first if changed[name] != first[name]] == ["code"]


def test_the_room_for_replies_counts(base: str) -> None:
    """A worked solution needs more tokens than a bare answer: the base must not be asked with less than its arms."""
    config, (_, tokenizer) = small_config(base), load_base(base)
    bare = NewTask("sums", (Item("1 + 1 =", "2"),), lambda answer, entry: float(answer == entry["answer"]))
    worked = dataclasses.replace(bare, test=(Item("1 + 1 =", "2", solution="One and one are two."),))
    first, second = (make_suite(NewTaskSuite, config, tokenizer, [task]).content() for task in (bare, worked))
    assert first != second


def test_a_suite_without_content_is_never_cached(
    base: str, filled: tuple[Path, Baseline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextSuite, "content", lambda self: None)
    assert measure(base, filled[0]).measured == ["text"]


@pytest.fixture
def entry(base: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> tuple[BaseCache, Path, CachedSuite]:
    cache = BaseCache(tmp_path, load_base(base)[0], tokenizer, FP32)
    suite = make_suite(TextSuite, small_config(base), tokenizer)
    record = Record("kept", "task", "plain", "é", correct=1, options=("a", "b"), scores=(-0.1, -1 / 3), prompt="0")
    place, entry = cache.place(suite), CachedSuite([record], {"x": [1]}, 2.5)
    assert place is not None
    assert cache.read(place) is None
    cache.write(place, suite, entry)
    return cache, place, entry


def test_an_entry_comes_back_as_it_was(entry: tuple[BaseCache, Path, CachedSuite]) -> None:
    cache, place, written = entry
    assert cache.read(place) == written
    key = json.loads((place / "meta.json").read_text())["key"]
    assert key["suite"] == "text"
    assert set(key) > {"weights", "tokenizer", "precision", "torch", "transformers"}


@pytest.mark.parametrize("file", ["records.jsonl", "state.json", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_entry_is_none(entry: tuple[BaseCache, Path, CachedSuite], file: str, damage: str) -> None:
    cache, place, _ = entry
    text = (place / file).read_text()
    if damage == "gone":
        (place / file).unlink()
    else:
        (place / file).write_text(text[: len(text) // 2] if damage == "cut" else text.replace("{", "[", 1))
    assert cache.read(place) is None


def test_an_entry_of_another_key_is_none(entry: tuple[BaseCache, Path, CachedSuite]) -> None:
    """Whole, but of another base model, suite or version: a folder that was renamed or restored."""
    cache, place, _ = entry
    other = place.with_name("0123456789abcdef")
    place.rename(other)
    assert cache.read(other) is None


def test_a_damaged_entry_is_made_again(base: str, tmp_path: Path) -> None:
    first = measure(base, tmp_path, suites=["drift"])
    (path,) = (tmp_path / "cache" / "base").glob("*/records.jsonl")
    path.write_text("torn")
    again = measure(base, tmp_path, suites=["drift"])
    assert again.measured == ["drift"]
    assert again.records == first.records
    assert measure(base, tmp_path, suites=["drift"]).measured == []


def test_base_against_itself_is_exactly_0_from_the_cache_too(base: str, filled: tuple[Path, Baseline]) -> None:
    model, tokenizer = load_base(base)
    config = small_config(base)
    suites = draw_suites(config, tokenizer, ExperimentData(config, tokenizer).tasks)
    evaluation, baseline = suites.measure_base(model, FP32, BaseCache(filled[0], model, tokenizer, FP32))
    assert baseline.measured == []
    records = evaluation.evaluate(model, FP32, ("drift",), progress=False)
    assert [r.value for r in records] == [0.0] * 6
    assert records == [r for r in filled[1].records if r.suite == "drift"]


def _measured(base: str, root: str, queue: Any) -> None:
    queue.put(measure(base, Path(root), suites=["kept", "text"]).measured)


def test_two_processes_measure_once_between_them(base: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_measured, args=(base, str(tmp_path), queue)) for _ in range(2)]
    for process in processes:
        process.start()
    measured = [name for _ in processes for name in queue.get(timeout=120)]
    for process in processes:
        process.join()
    assert sorted(measured) == ["kept", "text"]
