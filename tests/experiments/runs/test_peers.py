"""Trials of a study whose data or base model was changed between them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.common.errors import RunError
from experiments.common.files import write_json, write_text
from experiments.common.owner import SOURCES
from experiments.common.yaml_values import dump_yaml
from experiments.config import ExperimentConfig, parse_config
from experiments.models.weights_digest import weights_digest
from experiments.runs.base_records import TIMING
from experiments.runs.peers import check_peers
from tests.helpers.byte_level import byte_llama
from tests.helpers.small_run import small_values

DATA = {"0 sums": "a", "kept facts": "b"}


def config(number: int, **changes: Any) -> ExperimentConfig:
    return parse_config({**small_values("base"), "name": f"q-{number:03d}", **changes})


def begun(root: Path, number: int, digests: dict[str, str], weights: str = "", **changes: Any) -> Path:
    """Write what a trial leaves: its config, the digests of its data, its base's weights."""
    write_text(root / "studies" / "q" / "study.yaml", "name: q\n")
    own = config(number, **changes)
    folder = root / "runs" / f"{own.name}-{own.digest()}"
    write_text(folder / "config.yaml", dump_yaml(own.to_dict()))
    write_json(folder / SOURCES, digests)
    if weights:
        write_json(folder / "base" / TIMING, {"weights": weights})
    return folder


def check(root: Path, digests: dict[str, str] | None = None, study: str = "q", **changes: Any) -> None:
    own = config(7, **changes)
    inputs: Any = SimpleNamespace(config=own, digests=DATA if digests is None else digests, model=byte_llama(260))
    check_peers(inputs, root / "runs" / f"{own.name}-{own.digest()}", study)


def test_a_trial_on_the_data_of_the_others_runs(tmp_path: Path) -> None:
    check(tmp_path)  # the first one
    begun(tmp_path, 0, DATA, weights_digest(byte_llama(260)))
    check(tmp_path)
    check(tmp_path, {**DATA, "1 replayed": "c"})  # an arm that replays reads more


def test_data_that_changed_between_two_trials_is_named(tmp_path: Path) -> None:
    begun(tmp_path, 0, {**DATA, "0 sums": "before"})
    with pytest.raises(RunError, match=r"^sums has changed since q-000-\w{8} ran, so this trial would not compare"):
        check(tmp_path)
    check(tmp_path, study="other")


def test_another_base_model_of_the_same_name_is_named(tmp_path: Path) -> None:
    begun(tmp_path, 0, DATA, "0" * 64)
    with pytest.raises(RunError, match=r"^base_model base has changed since q-000"):
        check(tmp_path)


def test_a_trial_with_other_settings_of_data_or_another_seed_is_no_peer(tmp_path: Path) -> None:
    begun(tmp_path, 0, {"0 sums": "other"}, seed=5)
    begun(tmp_path, 1, {"0 sums": "other"}, data={**small_values("base")["data"], "length": 96})
    check(tmp_path)
    begun(tmp_path, 7, {"0 sums": "other"})  # its own folder, which says so itself
    check(tmp_path)
    (begun(tmp_path, 2, {"0 sums": "other"}) / "config.yaml").write_text("{")  # its own run says so
    check(tmp_path)
    begun(tmp_path, 3, {"0 sums": "other"}, training={**small_values("base")["training"], "weight_decay": 0.1})
    with pytest.raises(RunError, match="sums has changed since q-003"):
        check(tmp_path)
