"""The further tables of a run: which arms are in them."""

from __future__ import annotations

import dataclasses

from experiments.records import Estimate
from experiments.reporting.run_details import RunRecords
from tests.experiments.reporting.test_details import answers
from tests.helpers.invented_arms import synthetic
from tests.helpers.small_run import small_config


def test_a_failed_arm_is_in_no_further_table() -> None:
    """Base .2/.8. The failed arm gained .1 and kept all, the other gained .4 and kept half of it."""
    config = small_config("base", evaluation={"bootstrap": 100})
    good = synthetic("good", 1e-3, 0.4, 0.5)
    good.scorecard["kl_new"], good.cost = Estimate(0.2), good.cost | {"tokens": 2048.0}
    bad = dataclasses.replace(good, arm="bad", status="failed", reason="loss is NaN", steps=20)
    records = {"good 1e-3": {20: answers(3, 6), 60: answers(6, 4)}, "bad 1e-3": {20: answers(3, 8)}}
    run = RunRecords(config, answers(2, 8), [good, bad], records)
    found = {table.title: table for table in run.tables({}, [])}
    turned = found.pop("Answers that turned")
    assert set(found) == {"Trajectory", "Further figures", "Cost"}
    assert {row[0] for table in (turned, *found.values()) for row in table.rows} == {"good 1e-3"}
    assert found["Trajectory"].head[1] == "retention at gain +.40"  # and not +.10
    assert found["Trajectory"].rows[0][1].startswith(".50")
    alone = RunRecords(config, answers(2, 8), [bad], records)
    assert alone.tables({}, []) == alone.pictures() == []
