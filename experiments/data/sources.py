"""The table of sources, by the name in the YAML."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import Field

from experiments.common.section import nearest
from experiments.data.base_text import BaseText
from experiments.data.facts import Facts
from experiments.data.files import LocalFile
from experiments.data.hub import HuggingFace
from experiments.data.language import Language
from experiments.data.procedural import ReasoningGym
from experiments.data.source import Source
from experiments.data.stages import Earlier
from experiments.data.stdlib import PythonLibrary

AnySource = Annotated[  # all sources; a new one is added here
    ReasoningGym | Facts | Language | LocalFile | HuggingFace | PythonLibrary | BaseText | Earlier,
    Field(discriminator="source"),
]
SOURCES: dict[str, type[Source]] = {
    source.model_fields["source"].default: source for source in get_args(get_args(AnySource)[0])
}


def named(value: Any) -> Any:
    """Check the name of one source, given as plain values; without a name it is reasoning_gym."""
    if not isinstance(value, dict):
        return value
    name = value.get("source", "reasoning_gym")
    if not isinstance(name, str) or name not in SOURCES:
        raise ValueError(f"unknown source {name!r}: {nearest(str(name), SOURCES)}")
    return {"source": name, **value}


def with_shares(values: list[Any]) -> list[Any]:
    """Give several sources equal shares, if none names its own."""
    if len(values) < 2 or any(not isinstance(value, dict) or "share" in value for value in values):
        return values
    return [{**value, "share": 1 / len(values)} for value in values]


def check_shares(sources: tuple[Source, ...], place: str) -> None:
    """Raise ValueError unless the shares of one side sum to 1."""
    total = sum(source.share for source in sources)
    if sources and abs(total - 1) > 1e-6:
        shares = " + ".join(f"{source.share:g}" for source in sources)
        raise ValueError(
            f"the shares of {place} must sum to 1, but sum to {total:g} ({shares}); without any they are equal"
        )
