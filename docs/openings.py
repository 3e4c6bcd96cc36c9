"""Copy the picture of each notebook's answer to notebooks/pictures/, which its first cell shows.

    python -m docs.openings

It is in the saved output of the cell with the tag `answer`. Run it after a notebook was run and saved; a test compares.
"""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.reporting.page import few_colours

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TAG, WIDTH = "answer", 900  # pixels
INLINE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")


def main() -> None:
    """Write notebooks/pictures/NN.png, by the numbers of the notebooks."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        place(path).parent.mkdir(exist_ok=True)
        place(path).write_bytes(picture(json.loads(path.read_text(encoding="utf-8"))))


def place(notebook: Path) -> Path:
    return notebook.parent / "pictures" / f"{notebook.stem[:2]}.png"


def picture(notebook: dict[str, Any]) -> bytes:
    """Return the picture of a notebook's answer, not wider than WIDTH. Raises ValueError without one."""
    for cell in notebook["cells"]:
        if TAG in cell["metadata"].get("tags", ()):
            for output in cell["outputs"]:
                if found := _encoded(output.get("data", {})):
                    return _smaller(base64.b64decode(found))
    raise ValueError(f"no cell with the tag {TAG!r} shows a picture: run the notebook and save it")


def _encoded(data: dict[str, Any]) -> str:
    """Return the picture of an output, which may be inside HTML; empty if it has none."""
    if "image/png" in data:
        return "".join(data["image/png"])
    inline = INLINE.search("".join(data.get("text/html", "")))
    return inline[1] if inline else ""


def _smaller(png: bytes) -> bytes:
    image, small = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    image.save(small, "PNG")
    return few_colours(small.getvalue())


if __name__ == "__main__":
    main()
