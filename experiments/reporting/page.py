"""Build the pages of reports: templates for HTML and Markdown, pictures as files."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from experiments.common.files import write_text
from experiments.common.printable import escaped, without_codes

COLOURS = 64  # of a picture in a notebook, which is saved with it
TEMPLATES = Path(__file__).parent / "templates"


def _markdown(value: Any) -> Any:
    """Escape tags and links of others' text in Markdown; `| safe` marks what is code."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return escaped(value)
    return value


HTML, MARKDOWN = (
    jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=escapes, finalize=finalize,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )
    for escapes, finalize in ((True, None), (False, _markdown))
)  # fmt: skip


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Write `template`.html.j2 or `template`.md.j2 with these values, by the suffix of `path`. Returns the path."""
    environment = HTML if path.suffix == ".html" else MARKDOWN
    text = environment.get_template(f"{template}{path.suffix}.j2").render(**values)
    write_text(path, without_codes(text))  # of any text in it: `cat` would obey them
    return path


def image_bytes(figure: Figure, kind: str, dpi: int = 200) -> bytes:
    """Draw the figure as a file. kind: `svg`, the same bytes at any time of day, or `png`. dpi: dots per inch of it."""
    data = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    figure.savefig(data, format=kind, dpi=dpi, metadata=metadata)
    return data.getvalue()


def few_colours(png: bytes, colours: int = COLOURS) -> bytes:
    """Return a PNG as one of at most so many colours, which takes a quarter to a half of a figure's bytes."""
    from PIL import Image

    data = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(
        data, "PNG", optimize=True
    )
    return data.getvalue()


def inline_svg(figure: Figure) -> str:
    """Draw the figure as base64, for the page itself."""
    return base64.b64encode(image_bytes(figure, "svg")).decode()
