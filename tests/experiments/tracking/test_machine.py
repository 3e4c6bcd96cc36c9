"""Whose process a run is: told from machine, boot, id and start time."""

from __future__ import annotations

import pytest

from experiments.tracking import machine
from experiments.tracking.machine import process_alive, process_state, process_tags


def test_two_machines_of_one_host_name_do_not_judge_each_others_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_machine_id", lambda: "this")
    mine = process_tags()
    assert mine["machine_id"] == "this"
    assert process_state(mine) is True
    assert process_state({**mine, "boot_id": "before the restart"}) is False
    other = {**mine, "machine_id": "other", "boot_id": "its own"}
    assert process_state(other) is None
    assert process_alive(other)
    older = {key: tag for key, tag in mine.items() if key != "machine_id"}
    assert process_state(older) is True
    monkeypatch.setattr(machine, "_machine_id", lambda: "")  # not readable here
    assert process_state(process_tags()) is True
    assert process_state(mine) is None
