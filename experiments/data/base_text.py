"""The base model's own text: what to replay where the data it was trained on is not at hand.

It is sampled once and kept as JSON lines beside a JSON file of its provenance; the latter is written last, so a cache
without it, or one whose digest differs, is sampled again.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from experiments.common.errors import ConfigError
from experiments.common.files import json_lines, write_json, write_text
from experiments.common.hashing import sha256, short_digest
from experiments.data.items import Example, Item, Text
from experiments.data.sampling import Sampling, sample_chats, sample_texts
from experiments.data.source import Finite, Source, Workshop, distinct
from experiments.models.weights_digest import weights_digest

ROWS, PROVENANCE = "rows.jsonl", "provenance.json"


class SampledText(Finite):
    """Rows that a base model wrote, read from the folder where BaseText keeps them. Not a source of the YAML."""

    source: Literal["self"] = "self"
    folder: str

    @property
    def label(self) -> str:
        return "self"

    @functools.cached_property
    def examples(self) -> tuple[Example, ...]:
        text = (Path(self.folder) / ROWS).read_text(encoding="utf-8")
        return distinct([_example(json.loads(line)) for _, line in json_lines(text)])


class BaseText(Sampling, Source):
    """Text of the base model itself. A chat model writes the user's turn and then the reply to it; others plain text.

    Empty turns and questions that stand twice are thrown away, so a little less than `number` may remain. The seed of
    the sampling is a field of its own: every seed of an experiment replays one sample, in another order.
    """

    source: Literal["self"] = "self"

    @property
    def label(self) -> str:
        return "self"

    def ready(self, workshop: Workshop) -> Source:
        """Sample, unless it is in the cache. Two processes that want the same sample make it once."""
        provenance = self._provenance(workshop)
        key = short_digest(json.dumps(provenance, sort_keys=True))
        folder = workshop.cache / "self" / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _whole(folder):
                self._sample(workshop, folder, provenance)
        return SampledText(share=self.share, folder=str(folder))

    def _provenance(self, workshop: Workshop) -> dict[str, Any]:
        """All that the sample depends on; its digest names the cache's folder."""
        return {
            "base_model": workshop.base_model,
            "files": weight_files(workshop.base_model),
            "precision": workshop.precision,
            "chat_template": workshop.tokenizer.chat_template,
            "settings": self.model_dump(exclude={"source", "share"}),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        }

    def _sample(self, workshop: Workshop, folder: Path, provenance: dict[str, Any]) -> None:
        model = workshop.base()
        chat = bool(workshop.tokenizer.chat_template)
        draw: Callable[..., Iterator[Example]] = sample_chats if chat else sample_texts
        rows = list(draw(model, workshop.tokenizer, self, workshop.precision))
        if not rows:
            raise ConfigError(
                f"source self: none of {self.number} texts sampled from {workshop.base_model} could be used: raise "
                "max_tokens or number"
            )
        text = "".join(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in rows)
        write_text(folder / ROWS, text)
        made = {**provenance, "rows": len(rows), "sha256": sha256(text), "weights": weights_digest(model)}
        write_json(folder / PROVENANCE, made)


def weight_files(base_model: str) -> list[list[Any]]:
    """Name, size and time of each file of a local model; empty for a name that Hugging Face serves."""
    from experiments.models.base import SHIPPED, shipped_folder

    folder = shipped_folder() if base_model.lower() == SHIPPED else Path(base_model)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


def _whole(folder: Path) -> bool:
    try:
        made = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        return bool(made["sha256"] == sha256((folder / ROWS).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):
        return False


def _plain(row: Example) -> dict[str, Any]:
    if isinstance(row, Item):
        return {"question": row.question, "reply": row.answer, "ended": row.ended}
    return {"text": row.text, "ended": row.ended}


def _example(row: dict[str, Any]) -> Example:
    if "text" in row:
        return Text(row["text"], ended=row["ended"])
    return Item(row["question"], row["reply"], ended=row["ended"])
