"""Streams of tasks: where stages end, what each draws, in which order, and training that is resumed inside one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig
from experiments.data.config import DataConfig
from experiments.data.mixture import Rows
from experiments.runs.data import ExperimentData
from tests.helpers.run_data import never, trained
from tests.helpers.small_run import small_config

SUM, GCD, SPELL = ({"name": name} for name in ("chain_sum", "gcd", "spell_backward"))
SIGNS = {"chain_sum": "arithmetic problem", "gcd": "Common Divisor", "spell_backward": "backward"}
PYTHON = {"source": "python", "modules": ["json", "email", "html", "wave", "heapq", "bisect", "queue", "sched"]}
EARLIER = {"source": "earlier"}


def stream(base: str, new: list[Any], steps: int = 6, every: int = 4, **data: Any) -> ExperimentConfig:
    return small_config(
        base,
        data={"new": new, "order": "sequential", "length": 96, **data},
        training={"steps": steps, "batch_size": 4, "warmup_steps": 1},
        evaluation={"every": every, "new_items": 2},
    )


def made(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> ExperimentData:
    return ExperimentData(config, tokenizer, never)


def tasks_of(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The task that each row is of, by a sign in its text."""
    texts = [tokenizer.decode(rows[i]["input_ids"]) for i in range(len(rows))]
    return [next(name for name, sign in SIGNS.items() if sign in text) for text in texts]


class TestEnds:
    @given(st.lists(st.integers(1, 20), min_size=2, max_size=6), st.integers(60, 400))
    def test_every_stage_has_its_share_of_the_steps_to_half_a_step_at_either_end(
        self, weights: list[int], steps: int
    ) -> None:
        shares = [weight / sum(weights) for weight in weights]
        new = [{"name": f"task{i}", "share": share} for i, share in enumerate(shares)]
        data = DataConfig.model_validate({"new": new, "order": "sequential"})
        try:
            ends = data.stage_ends(steps)
        except ValueError:
            assert min(shares) * steps <= 1
            return
        assert ends[-1] == steps
        for share, start, end in zip(shares, (0, *ends), ends, strict=False):
            assert end > start
            assert abs(end - start - share * steps) <= 1 + 1e-9

    def test_without_shares_stages_are_equal_and_mixed_data_has_one(self) -> None:
        equal = DataConfig.model_validate({"new": [SUM, GCD, SPELL], "order": "sequential"})
        assert equal.stage_ends(120) == (40, 80, 120)
        assert equal.stage_ends(10) == (3, 7, 10)
        assert DataConfig.model_validate({"new": [SUM, GCD]}).stage_ends(10) == (10,)

    def test_everything_is_measured_at_each_end_besides_every_so_many_steps(self) -> None:
        assert stream("x", [SUM, GCD, SPELL], steps=10, every=4).evaluation_steps == [3, 4, 7, 8, 10]
        assert stream("x", [SUM, GCD], steps=4, every=9).evaluation_steps == [2, 4]
        assert small_config("x", training={"steps": 7}).evaluation_steps == [2, 4, 6, 7]

    @pytest.mark.parametrize(
        ("new", "data", "said"),
        [
            ([SUM], {}, "order: sequential needs two or more sources under new, but got chain_sum alone"),
            ([SUM, GCD, SUM], {}, "but chain_sum appears more than once under new"),
            ([SUM, GCD, EARLIER], {}, "source earlier replays the tasks of new; it belongs under old"),
            ([SUM, GCD], {"order": "mixed", "old": EARLIER}, "source earlier needs stages .* set order: sequential"),
            ([SUM, GCD], {"order": "shuffled"}, r"data.order: Input should be 'mixed' or 'sequential'"),
            (
                [{**SUM, "share": 0.95}, {**GCD, "share": 0.05}],
                {},
                r"  training.steps=6 leaves no step for the stage gcd \(share 0.05\): give more steps, or a larger",
            ),
        ],
    )
    def test_refusals(self, new: list[Any], data: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            stream("x", new, **data)

    def test_fewer_steps_than_stages(self) -> None:
        with pytest.raises(ConfigError, match=r"training.steps=2 leaves no step for the stage gcd"):
            stream("x", [SUM, GCD, SPELL], steps=2)


class TestOrder:
    def test_tasks_come_one_after_the_other_and_the_same_for_every_arm(
        self, base: str, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        config = stream(base, [GCD, {**SUM}, SPELL], steps=5)
        data = made(config, tokenizer)
        first, second = (data.rows(arm) for arm in config.arms)
        assert tasks_of(first, tokenizer) == ["gcd"] * 8 + ["chain_sum"] * 4 + ["spell_backward"] * 8
        again = made(config, tokenizer).rows(config.arms[0])
        assert [again[i] for i in (19, 9, 0)] == [first[i] for i in (19, 9, 0)]
        assert [second[i] for i in range(20)] == [first[i] for i in range(20)]

    def test_each_task_gives_the_rows_that_it_gives_in_mixed_order(
        self, base: str, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        one, other = (made(stream(base, [SUM, GCD], order=order), tokenizer) for order in ("sequential", "mixed"))
        rows = [data.rows(data.config.arms[0]) for data in (one, other)]
        for name in ("chain_sum", "gcd"):
            found = [[each[i] for i, task in enumerate(tasks_of(each, tokenizer)) if task == name][:6] for each in rows]
            assert found[0] == found[1]

    @pytest.mark.parametrize("regime", ["sft", "cpt"])
    def test_every_stage_replays_its_share_and_replay_goes_on_where_it_was(
        self, regime: str, base: str, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        data = made(stream(base, [SUM, SPELL], 16, regime=regime, old=GCD, replay=0.25), tokenizer)
        drawn = data.drawn(data.config.arms[0])
        assert [(one["name"], one["stage"], one["replayed"]) for one in drawn] == [
            ("chain_sum", 1, False), ("gcd", 1, True), ("spell_backward", 2, False), ("gcd", 2, True),
        ]  # fmt: skip
        assert [one["asked"] for one in drawn] == [0.75, 0.25, 0.75, 0.25]
        for stage in (1, 2):
            own = [one for one in drawn if one["stage"] == stage]
            total = sum(one["tokens"] for one in own)
            assert sum(one["share"] for one in own) == pytest.approx(1)
            assert all(abs(one["share"] - one["asked"]) * total < 96 for one in own)
        rows = data.rows(data.config.arms[0])
        if regime == "sft":
            replayed = [tuple(rows[i]["input_ids"]) for i in range(64) if rows[i]["replayed"]]
            assert len(set(replayed)) == len(replayed) == sum(one["pieces"] for one in drawn if one["replayed"])
        else:
            assert all(len(rows[i]["input_ids"]) == 96 for i in range(64))

    def test_packed_rows_hold_one_stage_only(self, base: str, tokenizer: PreTrainedTokenizerBase) -> None:
        data = made(stream(base, [PYTHON, SUM], regime="cpt"), tokenizer)
        rows = data.rows(data.config.arms[0])
        texts = [tokenizer.decode(rows[i]["input_ids"]) for i in range(24)]
        assert ["arithmetic problem" in text for text in texts] == [False] * 12 + [True] * 12
        assert texts[12].startswith("<|im_start|>")


class TestEarlier:
    def test_replay_begins_with_what_was_learned_first_and_shares_as_the_stream_does(
        self, base: str, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        shares = [{**SUM, "share": 0.25}, {**GCD, "share": 0.25}, {**SPELL, "share": 0.5}]
        data = made(stream(base, shares, 24, old=EARLIER, replay=0.4), tokenizer)
        rows = data.rows(data.config.arms[0])
        found = tasks_of(rows, tokenizer)
        learned = [rows[i]["input_ids"] for i in range(24)]

        assert found[:24] == ["chain_sum"] * 24
        assert not any(rows[i]["replayed"] for i in range(24))
        replayed = [i for i in range(24, 96) if rows[i]["replayed"]]
        assert {found[i] for i in replayed if i < 48} == {"chain_sum"}
        assert {found[i] for i in replayed if i >= 48} == {"chain_sum", "gcd"}
        sums = [rows[i]["input_ids"] for i in replayed if found[i] == "chain_sum"]
        assert sums == learned[: len(sums)]
        drawn = data.drawn(data.config.arms[0])
        assert [(one["name"], one["stage"], one["asked"]) for one in drawn if one["replayed"]] == [
            ("chain_sum", 2, 0.4), ("chain_sum", 3, 0.2), ("gcd", 3, 0.2),
        ]  # fmt: skip
        assert [one["asked"] for one in drawn if not one["replayed"]] == pytest.approx([1, 0.6, 0.6])

    def test_what_a_method_keeps_of_the_base_is_not_taken_from_tasks_it_has_not_learned(
        self, base: str, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        old = [{**EARLIER, "share": 0.5}, {**GCD, "share": 0.5}]
        data = made(stream(base, [SUM, SPELL], old=old, replay=0.5), tokenizer)
        texts = [tokenizer.decode(ids) for batch in data.old_batches(2) for ids in batch["input_ids"]]
        assert len(texts) == 8
        assert all(SIGNS["gcd"] in text for text in texts)


@pytest.mark.slow
def test_a_run_that_stops_in_the_second_stage_goes_on_as_if_it_had_not(base: str, tmp_path: Path) -> None:
    config = stream(base, [SUM, SPELL], 8, 3, old=EARLIER, replay=0.3)
    assert config.evaluation_steps == [3, 4, 6, 8]
    whole, _ = trained(config, "full", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="step 7"):
        trained(config, "full", tmp_path / "parts", stop=7)
    rest, cost = trained(config, "full", tmp_path / "parts")
    assert len(rest) == 2  # saved at step 6
    assert rest == whole[-2:]
    assert cost["tokens"] > 0
