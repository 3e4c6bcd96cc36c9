"""Each notebook opens with its answer and the picture that shows it, and both are what its cells have given."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from docs.openings import picture, place

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.])-?\d*\.\d+|\b\d+ of \d+\b")  # .97, 1.22, 24 of 139


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def written(path: Path) -> str:
    """Return all texts that the cells of a notebook have given, without the tags of HTML."""
    outputs = [output for cell in cells(path) for output in cell.get("outputs", ())]
    kinds = ("text/plain", "text/html")
    texts = ["".join(o.get("text", "")) for o in outputs]
    texts += ["".join(o.get("data", {}).get(kind, "")) for o in outputs for kind in kinds]
    return re.sub(r"<[^>]*>", " ", "\n".join(texts))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_it_opens_with_an_answer_whose_numbers_are_those_of_its_cells(path: Path) -> None:
    opening = "".join(cells(path)[0]["source"])
    assert re.search(r"(?i)\banswer\b", opening)
    shown = written(path)
    for number in NUMBER.findall(opening):
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", shown), f"{number} is in no output"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_its_picture_is_that_of_its_cell(path: Path) -> None:
    assert f"](pictures/{place(path).name})" in "".join(cells(path)[0]["source"])
    made = picture(json.loads(path.read_text(encoding="utf-8")))
    kept, now = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in (place(path).read_bytes(), made))
    assert kept.shape == now.shape, "python -m docs.openings"
    assert np.abs(kept.astype(int) - now).mean() < 1, "python -m docs.openings"


def test_a_notebook_without_a_picture_is_named() -> None:
    with pytest.raises(ValueError, match="no cell with the tag 'answer' shows a picture"):
        picture({"cells": [{"metadata": {"tags": ["answer"]}, "outputs": []}]})
