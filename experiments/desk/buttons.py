"""Show a picker as menus and buttons in a notebook. Nothing trains before a click on Run, and no slider is there.

Each click prints the line of Python that does the same, and the YAML of the arm.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Collection
from dataclasses import fields
from typing import Any

import ipywidgets as widgets
from IPython.display import display
from markupsafe import Markup

from ctrl import ControlConfig
from experiments.common.errors import BenchError
from experiments.desk.picker import CONTROL, Picker, options

NUMBERS = {"layers": int, "alpha_start": float, "divergence_weight": float}
RATE = 1e-3  # of a new arm
WIDE = {"description_width": "130px"}


class Buttons:
    """Menus for the fields of an arm, and the buttons add, clone, remove, run, stop and refresh."""

    def __init__(self, picker: Picker) -> None:
        self.picker = picker
        self.defaults = {field.name: field.default for field in fields(ControlConfig) if field.name in CONTROL}
        self.name = widgets.Text(description="name", placeholder="of the new arm", style=WIDE)
        self.fields = {name: self._menu(name) for name in ("method", *CONTROL)}
        self.fields["method"].value = "control"
        self.rate = widgets.Text(value=f"{RATE:g}", description="rate", style=WIDE)
        self.replay = widgets.Text(placeholder="as the run", description="replay", style=WIDE)
        self.chosen = widgets.Dropdown(options=list(picker.arms), description="arm", style=WIDE)
        self.said, self.shown = widgets.HTML(), widgets.HTML()
        self.shown.add_class("jp-RenderedHTMLCommon")  # the lab's style of tables, with room between the columns
        actions = ("add", "clone", "remove", "run", "stop", "refresh")
        self.buttons = {name: self._button(name) for name in actions}
        self.touched: set[str] = set()  # fields that were set by hand: a clone gets them, at their defaults too
        for name, field in (*self.fields.items(), ("rate", self.rate)):
            field.observe(functools.partial(self._touch, name), "value")
        self.shown.value = picker.table().html()

    def _ipython_display_(self) -> None:
        own = [self.name, *self.fields.values(), self.rate, self.replay]
        columns = widgets.HBox([widgets.VBox(own[: len(own) // 2]), widgets.VBox(own[len(own) // 2 :])])
        row = [self.buttons["add"], self.chosen, *(self.buttons[name] for name in list(self.buttons)[1:])]
        display(widgets.VBox([columns, widgets.HBox(row), self.said, self.shown]))

    def _menu(self, name: str) -> Any:
        if name in NUMBERS:
            return widgets.Text(value=f"{self.defaults[name]:g}", description=name, style=WIDE)
        default = self.defaults.get(name, "control")
        return widgets.Dropdown(options=options()[name], value=default, description=name, style=WIDE)

    def _button(self, name: str) -> Any:
        button = widgets.Button(description=name.capitalize(), tooltip=TIPS[name], layout={"width": "90px"})
        button.on_click(lambda _: self.click(name))
        return button

    def _touch(self, name: str, change: Any) -> None:
        self.touched.add(name)

    def click(self, name: str) -> None:
        """Do what a button does: show the Python that it equals, and call it. An error is shown as one line."""
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            try:
                line, call = getattr(self, f"_{name}")()
                print(f">>> {line}")
                call()
            except (BenchError, ValueError) as error:
                print(error)
        self.said.value = Markup("<pre>{}</pre>").format(text.getvalue())
        self.chosen.options = list(self.picker.arms)
        self.shown.value = self.picker.table().html()

    def picked(self, defaults: Collection[str] = ()) -> dict[str, Any]:
        """Return the fields that are not at their defaults, and `defaults` at theirs too.

        `control` is not read by methods without copies.
        """
        found: dict[str, Any] = {"method": self.fields["method"].value, "rate": _number("rate", self.rate.value, float)}
        if self.replay.value.strip():
            found["replay"] = _number("replay", self.replay.value, float)
        for name in CONTROL:
            given = self.fields[name].value
            value = _number(name, given, NUMBERS[name]) if name in NUMBERS else given
            found |= {name: value} if name in defaults or value != self.defaults[name] else {}
        return found

    def _add(self) -> tuple[str, Callable[[], Any]]:
        name, picked = self.name.value.strip(), self.picked()
        return f"picker.add({_arguments(name, **picked)})", lambda: self.picker.add(name, **picked)

    def _clone(self) -> tuple[str, Callable[[], Any]]:
        """Copy the chosen arm under the name in the field, with the fields that were set and differ from it."""
        old, new = self.chosen.value or "", self.name.value.strip()
        arm = self.picker.arms.get(old, {})
        own = {**self.defaults, **arm.get("control", {}), "method": arm.get("method")}
        own["rate"] = arm.get("learning_rates", [None])[0] if len(arm.get("learning_rates", ())) == 1 else None
        fields = self.picked(self.touched)
        changes = {k: v for k, v in fields.items() if k in (*self.touched, "replay") and v != own.get(k)}
        line = f"picker.clone({_arguments(old, new, **changes)})"
        return line, lambda: self.picker.clone(old, new, **changes)

    def _remove(self) -> tuple[str, Callable[[], Any]]:
        name = self.chosen.value or ""
        return f"picker.remove({name!r})", lambda: self.picker.remove(name)

    def _run(self) -> tuple[str, Callable[[], Any]]:
        follow = "to follow it, in another cell: await watch_async({!r})"
        return "picker.run()", lambda: print(follow.format(self.picker.run().name))

    def _stop(self) -> tuple[str, Callable[[], Any]]:
        return "picker.stop()", self.picker.stop

    def _refresh(self) -> tuple[str, Callable[[], Any]]:
        return "picker.table()", lambda: None


TIPS = {
    "add": "add an arm with the values above; nothing trains yet",
    "clone": "copy the chosen arm under the name above, with the values that were set above",
    "remove": "take away the chosen arm, if it has not begun",
    "run": "train the arms that are not finished, in a process of its own",
    "stop": "stop the run after its step; a checkpoint is saved",
    "refresh": "read the status of the arms again",
}


def _arguments(*names: str, **values: Any) -> str:
    """Write arguments as Python has them."""
    return ", ".join([*map(repr, names), *(f"{name}={value!r}" for name, value in values.items())])


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}: give a{'n integer' if kind is int else ' number'}") from None
