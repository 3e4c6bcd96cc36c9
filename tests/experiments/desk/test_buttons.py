"""The buttons of the picker: each click does what the line of Python says that it shows."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

pytest.importorskip("ipywidgets")

from experiments.desk.buttons import Buttons
from tests.helpers.picked import picker


def said(buttons: Buttons, click: str) -> str:
    """Click a button and return what it shows."""
    buttons.buttons[click].click()
    return html.unescape(buttons.said.value).removeprefix("<pre>").removesuffix("</pre>")


def test_add_and_clone_show_the_python_that_does_the_same(tmp_path: Path) -> None:
    buttons = Buttons(picker(tmp_path, own_arms=False))
    buttons.name.value, buttons.fields["interpolation"].value, buttons.fields["layers"].value = "a", "dlerp", "4"
    text = said(buttons, "add")
    line = ">>> picker.add('a', method='control', rate=0.001, layers=4, interpolation='dlerp')"
    assert text.splitlines()[0] == line
    assert "- name: a" in text
    other = picker(tmp_path, own_arms=False)
    eval(line.removeprefix(">>> "), {"picker": other})
    assert other.yaml == buttons.picker.yaml
    assert buttons.chosen.options == ("a",)
    buttons.chosen.value, buttons.name.value = "a", "b"
    buttons.fields["layers"].value, buttons.fields["divergence"].value = "8", "cosine"
    assert ">>> picker.clone('a', 'b', layers=8, divergence='cosine')" in said(buttons, "clone")
    assert buttons.picker.arms["b"]["control"] == {"layers": 8, "interpolation": "dlerp", "divergence": "cosine"}


def test_a_clone_can_go_back_to_a_default_and_keeps_what_nobody_set(tmp_path: Path) -> None:
    buttons = Buttons(picker(tmp_path, own_arms=False))
    buttons.picker.add("first", rate=3e-4, layers=4, alpha_start=0.3)
    buttons.chosen.options, buttons.name.value = ("first",), "second"
    buttons.chosen.value = "first"
    buttons.rate.value = "3e-4"
    buttons.rate.value = "0.001"
    buttons.fields["alpha_start"].value = "0.4"
    buttons.fields["alpha_start"].value = "0.5"
    assert ">>> picker.clone('first', 'second', rate=0.001, alpha_start=0.5)" in said(buttons, "clone")
    arm = buttons.picker.arms["second"]
    assert (arm["learning_rates"], arm["control"]) == ([1e-3], {"layers": 4, "alpha_start": 0.5})


def test_remove_takes_the_chosen_arm_and_an_error_is_one_line(tmp_path: Path) -> None:
    buttons = Buttons(picker(tmp_path))
    buttons.chosen.value = "full"
    assert ">>> picker.remove('full')" in said(buttons, "remove")
    assert buttons.picker.arms == {}
    assert "there is no arm yet: add one first" in said(buttons, "run")
    buttons.name.value, buttons.fields["layers"].value = "x", "many"
    assert said(buttons, "add").strip() == "layers='many': give an integer"
    assert "replay" in buttons.shown.value  # the table of the arms


def test_run_and_stop_call_the_picker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buttons, called = Buttons(picker(tmp_path)), list[str]()
    monkeypatch.setattr(buttons.picker, "run", lambda: called.append("run") or tmp_path / "folder")
    monkeypatch.setattr(buttons.picker, "stop", lambda: called.append("stop"))
    assert "await watch_async('folder')" in said(buttons, "run")
    assert ">>> picker.stop()" in said(buttons, "stop")
    assert called == ["run", "stop"]


def test_nothing_that_is_dragged_starts_anything(tmp_path: Path) -> None:
    import ipywidgets

    buttons = Buttons(picker(tmp_path))
    own = [buttons.name, buttons.rate, buttons.replay, buttons.chosen, *buttons.fields.values()]
    assert not any("Slider" in type(widget).__name__ for widget in own)
    assert all(isinstance(widget, ipywidgets.Text | ipywidgets.Dropdown) for widget in own)
