"""Cache of the base model's results, shared by all runs and trials with the same base model, suites and seed.

Each suite has a folder `<root>/cache/base/<hash>/` with its records, its state and `meta.json`. The latter holds what
was hashed and the digests of the other two files, and is written last. The hash covers the model's weights and
configuration, the tokenizer, the items and settings of the suite, its version, precision, device and library versions.
Suite `drift` also keeps the base model's log-probabilities there (`log_probs.py`). The other files travel between
machines (`Elsewhere`); these are computed again from the state.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from filelock import FileLock
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.files import parse_json, write_json
from experiments.common.hashing import file_digest, json_digest
from experiments.data.grader_files import own_files
from experiments.evaluation.suite import DrawnSuite
from experiments.models.generation import reply_ends
from experiments.models.precision import EXACT, Precision, gpu_of, products_of
from experiments.models.tokens import asked_key
from experiments.models.weights_digest import weights_digest
from experiments.records import Record, read_records, write_records

# a text whose tokens tell tokenizers of one vocabulary apart: case, digits, spaces, accents, code, other scripts
PROBE = "In 2889 THE year's 1,234.5 d\u00e9j\u00e0-vu words:\n\tif x_1 != y:  print('Hello, World!')  # \u6f22\u5b57"
RECORDS, STATE, META = FILES = "records.jsonl", "state.json", "meta.json"  # the last one is written last


@dataclass(frozen=True)
class CachedSuite:
    """A suite's results on the base model. state: of the suite. seconds: duration of measuring."""

    records: list[Record]
    state: dict[str, Any]
    seconds: float


class Elsewhere(Protocol):
    """Entries that other machines have, and that they get from this one."""

    def copies(self, name: str, files: Sequence[str], folder: Path) -> Iterator[Path]:
        """Yield folders below `folder` with these files of an entry, as other machines have them."""

    def send(self, place: Path, files: Sequence[str]) -> None:
        """Send these files of an entry, whose name is that of its folder."""


class BaseCache:
    """The cached suites of one base model under a root folder, and elsewhere."""

    def __init__(
        self,
        root: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        precision: Precision,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.folder, self._elsewhere = root / "cache" / "base", elsewhere
        self.key: dict[str, Any] = (
            {
                "weights": weights_digest(model, self.folder / "weights.json"),
                "model": json_digest(_config(model)),
                "tokenizer": tokenizer_digest(tokenizer),
                "merges": json_digest(_file_of(tokenizer)),
                "precision": precision.name,
                "device": model.device.type,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
            | gpu_of(model)
            | _products(model)
            | _attention(model)
            | own_code(model)
        )
        self.ends = reply_ends(model, tokenizer)
        if len(self.ends) > 1:  # one alone is part of what is asked
            self.key |= {"ends": self.ends}

    def place(self, suite: DrawnSuite) -> Path | None:
        """Return the folder of a suite; None if the suite is not cached."""
        content = suite.content()
        return None if content is None else self.folder / json_digest(self._full_key(suite, content))[:16]

    def lock(self, place: Path) -> FileLock:
        """Return the lock to hold while reading or measuring: a second process waits for the first and then reads."""
        place.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{place}.lock")

    def read(self, place: Path) -> CachedSuite | None:
        """Return the results in a folder, or those of another machine; None if there are none.

        What is damaged, or of another key, counts as not there.
        """
        return self._read(place) or self._copied(place)

    def _copied(self, place: Path) -> CachedSuite | None:
        if self._elsewhere is None:
            return None
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".copy-") as scratch:
            for copy in self._elsewhere.copies(place.name, FILES, Path(scratch)):
                if self._read(copy):
                    place.mkdir(exist_ok=True)
                    for name in FILES:
                        os.replace(copy / name, place / name)
                    return self._read(place)
        return None

    def _read(self, place: Path) -> CachedSuite | None:
        try:
            meta = parse_json((place / META).read_text(encoding="utf-8"))
            if json_digest(meta["key"])[:16] != place.name:
                return None
            if any(file_digest(place / name) != meta["files"][name] for name in (RECORDS, STATE)):
                return None
            state = parse_json((place / STATE).read_text(encoding="utf-8"))
            return CachedSuite(read_records(place / RECORDS), state, float(meta["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, place: Path, suite: DrawnSuite, entry: CachedSuite) -> None:
        """Write the results: each file whole or not at all, and `meta.json` last, without which nothing is read."""
        (place / META).unlink(missing_ok=True)
        write_records(place / RECORDS, entry.records)
        write_json(place / STATE, entry.state)
        files = {name: file_digest(place / name) for name in (RECORDS, STATE)}
        key = self._full_key(suite, suite.content())
        write_json(place / META, {"key": key, "seconds": entry.seconds, "files": files})
        if self._elsewhere:
            self._elsewhere.send(place, FILES)

    def _full_key(self, suite: DrawnSuite, content: Any) -> dict[str, Any]:
        return self.key | {"suite": suite.name, "version": suite.version, "content": json_digest(content)}


def _products(model: PreTrainedModel) -> dict[str, Any]:
    """Return how products of fp32 are computed, if it is not as fp32 says."""
    how = products_of(model)
    return {} if how == EXACT else {"products": how}


def _attention(model: PreTrainedModel) -> dict[str, Any]:
    """Return how attention is computed, if it is not the model's default: last digits depend on it."""
    own: Any = model
    default = "sdpa" if getattr(own, "_supports_sdpa", False) else "eager"
    how = model.config._attn_implementation
    return {} if how in (None, default) else {"attention": how}


def own_code(model: PreTrainedModel) -> dict[str, Any]:
    """Return a digest of a model's own code (`trust_remote_code`), which may change while its weights stay."""
    wrappers = ("torch", "accelerate")  # whose classes are made around a model's
    kind = next(one for one in type(model).__mro__ if one.__module__.partition(".")[0] not in wrappers)
    if kind.__module__.partition(".")[0] == "transformers":
        return {}
    try:
        files = own_files(Path(inspect.getfile(kind)))
    except (OSError, TypeError):  # made in a notebook
        return {}
    return {"code": json_digest([file.read_text(encoding="utf-8", errors="replace") for file in files])}


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of the words, the chat template, and how both turn a text into tokens."""
    words = sorted(tokenizer.get_vocab().items())
    return json_digest([words, tokenizer.chat_template, asked_key(tokenizer, [PROBE])])


def _file_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return all that a fast tokenizer does. Another version of its library may write it in another way."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return str(backend.to_str()) if backend is not None else ""


def _config(model: PreTrainedModel) -> dict[str, Any]:
    """Return the configuration without the name of its folder and the version of the library that wrote it."""
    return {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
