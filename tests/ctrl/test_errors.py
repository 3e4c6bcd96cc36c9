"""An unknown name is answered with the nearest, or with all that are known. Each model gets its warnings."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import pytest

import ctrl
from ctrl.config import ControlConfig
from ctrl.errors import ControlWarning, unknown_name
from tests.helpers.tiny_llama import IDS, tiny


def test_a_name_near_nothing_lists_what_is_known() -> None:
    assert unknown_name("method", "qqq", ["lerp", "slerp"]) == "unknown method 'qqq': known: lerp, slerp"


def test_is_a_value_error() -> None:
    """So that callers who do not know ctrl catch it too."""
    with pytest.raises(ValueError, match="layers=0"):
        ControlConfig(layers=0)


@pytest.mark.parametrize("first", ["", "ignore"])
def test_the_second_model_of_a_process_is_warned_too(first: str) -> None:
    """Python's own filters show equal words of one place once in a process. What the user ignores stays ignored."""
    found = []
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.filterwarnings("always", category=ControlWarning, append=True)  # as importing ctrl does
        if first:
            warnings.simplefilter("ignore")
        warnings.showwarning = lambda message, *_: found.append(str(message))  # type: ignore[assignment]
        for _ in range(2):
            model = ctrl.expand(tiny(), ControlConfig(layers=2, divergence="mse"))
            for _ in range(2):
                model(input_ids=IDS).logits.sum().backward()
    assert len([words for words in found if "leaves out divergence" in words]) == (0 if first else 2)


def test_every_module_warns_in_this_way() -> None:
    for path in Path(ctrl.__path__[0]).glob("*.py"):
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        assert path.stem == "errors" or "warnings.warn" not in calls, path.name
