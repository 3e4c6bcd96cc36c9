"""Hooks of mkdocs: files outside docs/ that pages link to become part of the site, and formulas become MathML.

On GitHub the links and formulas work as they are, so the pages stay plain Markdown. The site needs no network and no
script.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = "project"  # folder of the site for files outside docs/
LINK = re.compile(r"(\]\()(\.\./)([^)#\s]+)")
SOURCE = "---\nsearch: {{exclude: true}}\n---\n# {name}\n\n````python\n{text}````\n"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add every file that a page links to as `../PATH`, and what those files link to in their turn."""
    waiting = [path for page in sorted(ROOT.glob("docs/*.md")) for path in _linked(page)]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file():
            found.add(path)
            waiting += _linked(path)
    for path in sorted(found):
        files.append(_copy(path, config))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links that leave docs/ to the copies in the site."""
    if page.file.src_uri.startswith(f"{OUTSIDE}/"):
        return markdown
    return LINK.sub(lambda link: f"{link[1]}{OUTSIDE}/{link[3]}{_ending(link[3])}", markdown)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Replace formulas in LaTeX by MathML, which browsers show by themselves."""
    return FORMULA.sub(_mathml, content)


def _copy(path: Path, config: Any) -> File:
    """A file outside docs/ as a file of the site; source code becomes a page that shows it."""
    name = f"{OUTSIDE}/{path.relative_to(ROOT)}"
    if path.suffix == ".md":
        return File.generated(config, name, content=path.read_text(encoding="utf-8"))
    if not _ending(name):
        return File.generated(config, name, content=path.read_bytes())
    text = SOURCE.format(name=path.relative_to(ROOT), text=path.read_text(encoding="utf-8"))
    return File.generated(config, name + _ending(name), content=text)


def _ending(name: str) -> str:
    """What the name of a file of source code gets as a page of the site."""
    return ".md" if name.endswith(".py") else ""


def _mathml(match: re.Match[str]) -> str:
    return convert(html.unescape(match[2]).strip(), display="block" if match[1] == "div" else "inline")


def _linked(file: Path) -> list[Path]:
    """Files that a page links to or shows by `../`, or a file outside docs/ by any relative link."""
    if file.suffix != ".md":
        return []
    targets = re.findall(r"\]\(([^)#\s]+)", file.read_text(encoding="utf-8"))
    start = "../" if file.parent == ROOT / "docs" else ""
    paths = [(file.parent / target).resolve() for target in targets if target.startswith(start) and "://" not in target]
    return [path for path in paths if path.is_relative_to(ROOT)]
