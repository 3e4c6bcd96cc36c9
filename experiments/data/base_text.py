"""Text of the base model itself: to replay if the data it was trained on is not available.

It is sampled once and stored as JSON lines, with a JSON file of its provenance. The latter is written last: without it,
or if its digest differs, the text is sampled again.
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
from experiments.common.files import json_lines, parse_json, read_note, write_json, write_text
from experiments.common.hashing import BLOCKS, BLOCKS_ONCE, file_stamp, sha256, short_digest
from experiments.data.items import Example, Item, Text
from experiments.data.sampling import Sampling, sample_chats, sample_texts
from experiments.data.source import Finite, Source, SourceContext, distinct
from experiments.models.reading import choices_of
from experiments.models.weights_digest import weights_digest

ROWS, PROVENANCE = "rows.jsonl", "provenance.json"
ADDED = ("rows", "sha256", "weights", "content")  # to the provenance of which the folder's name is a digest


class SampledText(Finite):
    """Text that a base model wrote, read from the folder where BaseText stores it. Not a source of the YAML."""

    source: Literal["self"] = "self"
    folder: str

    @property
    def label(self) -> str:
        return "self"

    @functools.cached_property
    def examples(self) -> tuple[Example, ...]:
        text = (Path(self.folder) / ROWS).read_text(encoding="utf-8")
        return distinct([_example(parse_json(line)) for _, line in json_lines(text)])


class BaseText(Sampling, Source):
    """Text of the base model itself. A chat model writes the user's turn, then the reply; other models plain text.

    Settings of the model's generation_config.json, such as a penalty on repetition, are not read. Empty turns and
    repeated questions are dropped, so slightly fewer than `number` may remain. The seed of the sampling
    is a separate field: all seeds of an experiment replay the same sample, each in another order.
    """

    source: Literal["self"] = "self"

    @property
    def label(self) -> str:
        return "self"

    def materialise(self, context: SourceContext) -> Source:
        """Sample the text, unless it is in the cache. Of two processes one samples and the other waits."""
        provenance = self._provenance(context)
        folder = context.cache / "self" / _key(provenance)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _whole(folder, weight_files(context.base_model, BLOCKS)):
                self._sample(context, folder, provenance)
        return SampledText(share=self.share, folder=str(folder))

    def _provenance(self, context: SourceContext) -> dict[str, Any]:
        """Return everything that the sample depends on; its digest is the name of the folder."""
        unread = choices_of(read_note(_folder_of(context.base_model) / "generation_config.json"))
        return {
            "base_model": context.base_model,
            "files": weight_files(context.base_model),
            "precision": context.precision,
            "chat_template": context.tokenizer.chat_template,
            "settings": self.model_dump(exclude={"source", "share"}),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
            **context.otherwise,
            **({"not_of_generation_config": unread} if unread else {}),  # earlier versions sampled with these
        }

    def _sample(self, context: SourceContext, folder: Path, provenance: dict[str, Any]) -> None:
        model = context.base()
        chat = bool(context.tokenizer.chat_template)
        draw: Callable[..., Iterator[Example]] = sample_chats if chat else sample_texts
        rows = list(draw(model, context.tokenizer, self, context.precision))
        if not rows:
            raise ConfigError(
                f"source self: none of {self.number} texts sampled from {context.base_model} could be used: raise "
                "max_tokens or number"
            )
        text = "".join(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in rows)
        write_text(folder / ROWS, text)
        made = {**provenance, "rows": len(rows), "sha256": sha256(text), "weights": weights_digest(model)}
        made["content"] = weight_files(context.base_model, BLOCKS)
        write_json(folder / PROVENANCE, made)


def weight_files(base_model: str, blocks: int = BLOCKS_ONCE) -> list[list[Any]]:
    """Return name and stamp of each file of a local model, and of a model of the Hugging Face Hub its commit.

    blocks: see `file_stamp`. Names of caches have the stamps of earlier versions, which read less and no commit; their
    notes have those of now too, by which a model that differs between the samples is known.
    """
    folder = _local(base_model)
    if not folder.is_dir():
        commit = hub_commit(base_model) if blocks == BLOCKS else ""
        return [["commit", commit]] if commit else []
    files = sorted(folder.iterdir())
    return [[file.name, *file_stamp(file, blocks)] for file in files if file.is_file()]


def _local(base_model: str) -> Path:
    from experiments.models.base import SHIPPED, shipped_folder

    return shipped_folder() if base_model.lower() == SHIPPED else Path(base_model).expanduser()


def _folder_of(base_model: str) -> Path:
    """Return the folder of a model's files, of one of the Hub that of its newest revision on this machine."""
    folder = _local(base_model)
    return folder if folder.is_dir() else _hub_folder(base_model) / "snapshots" / hub_commit(base_model)


def hub_commit(name: str) -> str:
    """Return the commit of the newest revision of a model of the Hub that is on this machine; empty if none is."""
    note = _hub_folder(name) / "refs" / "main"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else ""


def _hub_folder(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def _key(provenance: dict[str, Any]) -> str:
    return short_digest(json.dumps(provenance, sort_keys=True))


def _whole(folder: Path, content: list[list[Any]]) -> bool:
    """Whether the text is there as it was written, of what the folder's name says and of a model of this content."""
    try:
        made = parse_json((folder / PROVENANCE).read_text(encoding="utf-8"))
        key = {name: value for name, value in made.items() if name not in ADDED}
        text = (folder / ROWS).read_text(encoding="utf-8")
        same = made["sha256"] == sha256(text) and (made.get("content") or content) == (content or made.get("content"))
        return bool(same) and _key(key) == folder.name
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _plain(row: Example) -> dict[str, Any]:
    if isinstance(row, Item):
        return {"question": row.question, "reply": row.answer, "ended": row.ended}
    return {"text": row.text, "ended": row.ended}


def _example(row: dict[str, Any]) -> Example:
    if "text" in row:
        return Text(row["text"], ended=row["ended"])
    return Item(row["question"], row["reply"], ended=row["ended"])
