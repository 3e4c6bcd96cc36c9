"""What a run shows of itself while it trains, read from its files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.desk.live import Follower, values_of, words_of
from experiments.records import Record, write_records
from tests.helpers.live_run import begin_arm, log, make_live_run
from tests.helpers.run_folders import add_result, make_measurement, make_run, make_study


def test_a_run_on_its_way(tmp_path: Path) -> None:
    """20 steps an arm, three arms: one finished, one at step 5 with 2 s a step, one waiting."""
    folder = make_live_run(tmp_path)
    done = begin_arm(folder, "full-0.001")
    log(done, {1: {"loss": 3.0}, 20: {"loss": 1.0, "gain": 0.5, "retention": 0.9}}, seconds=1)
    add_result(folder, "full 0.001", "finished", {"gain": 0.5, "retention": 0.9})
    now = begin_arm(folder, "full-0.0001")
    log(now, {1: {"loss": 3.0}, 5: {"loss": 2.0, "layers/divergence_07": 0.25, "layers/alpha_07": 0.5}}, seconds=2)

    live = Follower(folder.name, tmp_path).look()
    assert live.running
    assert [arm.status for arm in live.arms] == ["finished", "running", "waiting"]
    assert [arm.step for arm in live.arms] == [20, 5, 0]
    assert live.current is live.arms[1]
    assert live.current.layers("divergence") == {7: 0.25}
    assert live.left == 15 * 2 + 20 * 1.5  # the arm that waits: the mean of the others
    said = "running, 1 of 3 arms done, arm 2 of 3, full-0.0001 at step 5 of 20, about 1 min left"
    assert words_of(live) == f"{folder.name}: {said}"
    assert values_of(live.arms[0]) | {"s/step": None} == {
        "arm": "full-0.001", "status": "finished", "step": 20, "loss": 1.0, "gain": 0.5, "retention": 0.9, "KL": None,
        "s/step": None,
    }  # fmt: skip


def test_each_look_reads_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_live_run(tmp_path)
    journal = begin_arm(folder, "full-0.001")
    log(journal, {1: {"loss": 3.0}}, seconds=1)
    follower = Follower(folder.name, tmp_path)
    first = follower.look().arms[0]
    assert first.series["loss"] == {1: 3.0}
    read: list[object] = []
    monkeypatch.setattr(type(first), "_read", lambda self, event: read.append(event))
    log(journal, {2: {"loss": 2.0}}, seconds=1)
    assert follower.look().arms[0] is first
    assert [event["step"] for event in read] == [2]  # type: ignore[index]


def test_a_resumed_arm_repeats_steps_and_its_pace_is_that_of_the_latest_attempt(tmp_path: Path) -> None:
    folder = make_live_run(tmp_path)
    journal = begin_arm(folder, "full-0.001")
    log(journal, {1: {"loss": 3.0}, 4: {"loss": 2.5}}, seconds=100)
    begin_arm(folder, "full-0.001", journal)
    log(journal, {3: {"loss": 2.6}, 5: {"loss": 2.0}}, seconds=1)
    (arm, *_) = Follower(folder.name, tmp_path).look().arms
    assert arm.series["loss"] == {1: 3.0, 3: 2.6, 4: 2.5, 5: 2.0}
    assert arm.pace == 1


def test_a_study_is_all_its_trials(tmp_path: Path) -> None:
    """Of 4 trials one is done and one trains: two more are to come."""
    from experiments.tracking.machine import process_tags

    make_study(tmp_path, "toy", owner=process_tags(), trials={"complete": 1}, limit=4)
    for number in range(2):
        run = make_live_run(tmp_path, f"toy-{number:03d}-0123abcd", arms=["full"])
        log(begin_arm(run, "full-0.001"), {1: {"loss": 1.0}, 11: {"loss": 0.5}}, seconds=1)
    add_result(tmp_path / "runs" / "toy-000-0123abcd", "full 0.001", "finished")
    live = Follower("toy", tmp_path).look()
    assert len(live.arms) == 2
    assert live.left == 9 + 2 * 20
    assert words_of(live).startswith("toy: running, 1 of 4 trials done, full-0.001 at step 11 of 20")


def test_without_a_step_nothing_is_promised(tmp_path: Path) -> None:
    live = Follower(make_run(tmp_path).name, tmp_path).look()
    assert (live.left, live.current, live.running) == (None, None, False)


def test_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    make_measurement(tmp_path, "measured", "measure", {"a": None})
    with pytest.raises(ConfigError, match="measured is a measurement, which trains nothing"):
        Follower("measured", tmp_path)
    with pytest.raises(ConfigError, match="no run or study 'other'"):
        Follower("other", tmp_path)


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    folder = make_live_run(tmp_path)
    log(begin_arm(folder, "full-0.001"), {1: {"loss": float("nan")}}, seconds=1)
    assert "loss" not in Follower(folder.name, tmp_path).look().arms[0].series


def test_trials_of_a_study_have_as_many_steps_as_their_own_configs_say(tmp_path: Path) -> None:
    """One trains 20 steps, the other 60: each is counted to its own end."""
    from experiments.tracking.machine import process_tags

    make_study(tmp_path, "toy", owner=process_tags(), trials={"complete": 0}, limit=3)
    for number, steps in enumerate((60, 20)):
        run = make_live_run(tmp_path, f"toy-{number:03d}-0123abcd", arms=["full"])
        file = run / "config.yaml"
        file.write_text(file.read_text().replace("steps: 20", f"steps: {steps}"))
        log(begin_arm(run, "full-0.001"), {1: {"loss": 1.0}, 11: {"loss": 0.5}}, seconds=1)
    live = Follower("toy", tmp_path).look()
    assert live.left == 49 + 9 + 40  # the third: the mean of the others
    assert "full-0.001 at step 11 of 60, about" in words_of(live)


def test_an_arm_that_goes_on_from_a_checkpoint_is_at_the_step_of_its_latest_attempt(tmp_path: Path) -> None:
    folder = make_live_run(tmp_path)
    journal = begin_arm(folder, "full-0.001")
    log(journal, {step: {"loss": 3.0} for step in range(1, 15)}, seconds=1)
    begin_arm(folder, "full-0.001", journal)
    log(journal, {11: {"loss": 2.6}}, seconds=1)
    (arm, *_) = Follower(folder.name, tmp_path).look().arms
    assert arm.step == 11


def test_questions_are_counted_once_the_base_has_answered_them(tmp_path: Path) -> None:
    folder = make_live_run(tmp_path)
    follower = Follower(folder.name, tmp_path)
    before = follower.look().asked.counts.get("new")
    write_records(folder / "base" / "items.jsonl", [Record("new", "sums", "generate", str(i), 1) for i in range(7)])
    assert (before, follower.look().asked.counts["new"]) == (None, 7)
