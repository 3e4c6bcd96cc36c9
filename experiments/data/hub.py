"""Datasets of the Hugging Face `datasets` library, by name or local folder."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest
from experiments.common.section import later_field
from experiments.common.spread import spread
from experiments.data.cells import as_stored, inexact
from experiments.data.columns import PART, BadRow, Chunk, Columns
from experiments.data.files import LocalFile, missing_parts
from experiments.data.hub_loading import files_digest, load
from experiments.data.items import Example, NewTask, NewText, is_held_out
from experiments.data.shapes import Shape
from experiments.data.source import Source, as_task, free
from experiments.data.stored import VERSION, Found, Stored, stored
from experiments.data.tables import Part, Row, filled
from experiments.data.tested import TestSet
from experiments.data.unread import passed_over, said_classes, said_empty, words_of
from experiments.tracking.uri import without_password

BUFFER = 1000  # rows that a streamed dataset is shuffled within
LARGE = 5000  # rows of a data set whose examples are kept on disk as they were read


class HuggingFace(Columns):
    """A dataset by its Hugging Face name, or a local folder that `datasets` can read, with its columns.

    streaming: rows are read when they are needed and shuffled within a buffer of 1,000; their tokens alone are kept.
    """

    source: Literal["huggingface"] = "huggingface"
    name: str = Field(description="name of the data set, or a local folder")
    subset: str | None = Field(None, description="configuration of the dataset")
    split: str = Field("train", description="split of the data set")
    files: tuple[str, ...] = later_field(
        (), description="files of the data set to read, with wildcards (`data/web-cn/*`), as one source; default: all"
    )
    revision: str | None = Field(None, description="commit or tag; without it, the newest, which may change")
    streaming: bool = Field(False, description="read rows as they are needed instead of downloading all")

    @field_validator("name", "files")
    @classmethod
    def _no_password(cls, value: Any) -> Any:
        for text in (value,) if isinstance(value, str) else value:
            if (shown := without_password(text)) != text:
                raise ValueError(
                    f"{shown!r} has a password or a token, which would be in the run's folder and in MLflow: download "
                    "the file, and read it with {source: file, path: FILE}"
                )
        return value

    @property
    def label(self) -> str:
        return self.name.rstrip("/").rpartition("/")[2]

    @property
    def size(self) -> int | None:
        return None if self.streaming else len(self.table or self._usable[0])

    @property
    def streamed(self) -> bool:
        return self.streaming

    @property
    def recognised(self) -> str:
        return self._shape.described(self.loaded.column_names or self._shape.columns)

    @property
    def notes(self) -> list[str]:
        inside = () if self.files else sorted(Path(self.name).rglob("*"))
        unread = [*self.escapes, *missing_parts(inside), *self.unread(self.loaded.column_names or (), self._place)]
        unread += said_classes(
            {name: one.names for name, one in self._read_features().items() if getattr(one, "names", None)}
        )
        if self.streaming:
            return unread
        faults, words = (self.table.faults, self.table.words) if self.table else self._usable[1:]
        return [*passed_over(faults), *said_empty(words), *unread]

    def digest(self) -> str:
        """Return a digest of the content (the fingerprint of `datasets`); if streamed, of name, revision and split."""
        return short_digest(super().digest(), "" if self.streaming else self.loaded._fingerprint)

    @functools.cached_property
    def origin(self) -> str:
        """A digest of the files that are streamed: commit of the data set, or size and bytes of local files.

        A stream is not read as a whole, and the newest revision may change while a run waits to go on. Empty if it is
        not streamed, or if nobody can be asked now.
        """
        if not self.streaming:
            return ""
        return files_digest(self.name, self.subset, self.split, **self._version)

    @model_validator(mode="after")
    def _all_rows(self) -> HuggingFace:
        if self.streaming and self.test and self.test.of_training:
            raise ValueError("test: a share needs all rows: give test a split or a path, or set streaming: false")
        return self

    def held_out(self, count: int, seed: int) -> NewTask | NewText:
        if self.test:
            return self.tested(count, seed)
        found: dict[str, Example] = {}
        for example in self.epoch(-1, seed, frozenset()):
            if len(found) == count:
                break
            found.setdefault(example.id, example)
        if len(found) < count:
            raise ConfigError(
                f"source {self.label} has {len(found)} distinct rows, but {count} are to be held out: lower "
                "evaluation.new_items"
            )
        return self.graded(as_task(self.label, list(found.values())))

    def test_source(self, test: TestSet) -> Source:
        if test.path is None:
            return super().test_source(test)
        own = {name: value for name, value in self.given().items() if name in LocalFile.model_fields}
        return LocalFile(**own, path=test.path)

    @functools.cached_property
    def table(self) -> Stored | None:
        if self.streaming or len(self.loaded) < LARGE:
            return None
        fields = self.model_dump_json(exclude={"share", "test"})
        starts = range(0, len(self.loaded), PART)
        try:
            key = short_digest(str(VERSION), fields, self.loaded._fingerprint)
            return stored(key, spread(self._part, starts), distinct=False)
        except (OSError, TypeError):
            return None

    def _part(self, start: int) -> Found:
        """Convert the rows from `start` on. Raises BadRow, and TypeError for examples that cannot be stored."""
        rows = self.loaded.select_columns(self._read).select(range(start, min(start + PART, len(self.loaded))))
        numbered = list(self._numbered(rows, start + 1))
        return self.packed_part(Chunk(Part(Path(self.name), read=numbered), self._place, self.loaded.column_names))

    def stored(self) -> Iterable[Example]:
        return self.table or self._rows(self.loaded if self.streaming else self._usable[0])

    def order(self, number: int, seed: int, held_out_ids: frozenset[str]) -> list[int]:
        import datasets

        left = set(free(self.table or (), held_out_ids))
        numbers = datasets.Dataset.from_dict({"number": range(len(self.table or ()))})
        return [n for n in _shuffled(numbers, number, seed)["number"] if n in left]

    def epoch(self, number: int, seed: int, held_out_ids: frozenset[str]) -> Iterator[Example]:
        if self.table:
            return map(self.table.__getitem__, self.order(number, seed, held_out_ids))
        extra = {"buffer_size": BUFFER} if self.streaming else {}
        rows = _shuffled(self.loaded if self.streaming else self._usable[0], number, seed, **extra)
        return (example for example in self._rows(rows) if not is_held_out(example, held_out_ids))

    def _rows(self, rows: Any) -> Iterator[Example]:
        """Convert rows. Those of a stream are checked here, because they are not known before."""
        for row in rows:
            try:
                cells = self._cells(row, self._place)
                if isinstance(cells, BadRow):
                    raise cells
                example = self._shape.example(cells, self._place)
                if self.streaming and (words := words_of(self._shape, cells)):
                    warnings.warn(said_empty(Counter(words))[0], stacklevel=2)
                yield example
            except BadRow as error:
                if not self.skip_bad_rows:
                    raise
                warnings.warn(f"passed over: {error}", stacklevel=2)

    @property
    def _place(self) -> str:
        return f"dataset {self.name}, split {self.split}"

    @functools.cached_property
    def _usable(self) -> tuple[Any, list[str], Mapping[str, int]]:
        """The usable rows of a dataset that is not streamed; faults of the others and words as in `columns.Usable`."""
        rows = self._numbered(self.loaded.select_columns(self._read), 1)
        examples, faults, words = self.usable(rows, self._place)
        return self.loaded.select([number - 1 for number in examples]) if faults else self.loaded, faults, words

    def _read_features(self) -> Mapping[str, Any]:
        """The types of the columns that are read, as far as they are known."""
        return {name: one for name, one in (self.loaded.features or {}).items() if name in self._read}

    @property
    def _read(self) -> list[str]:
        """The columns that are read."""
        return [name for name in self.loaded.column_names if name in (*self._shape.columns, *self._shape.also)]

    @functools.cached_property
    def _shape(self) -> Shape:
        """How its rows are read. The columns of some streams are those of their first row."""
        return self.shape(self.loaded.column_names or next(iter(self.loaded), {}), self._place)

    def _numbered(self, rows: Iterable[Mapping[str, Any]], first: int) -> Iterator[Row]:
        return ((f"row {n}", self._cells(row, f"{self._place}, row {n}")) for n, row in enumerate(rows, start=first))

    def _cells(self, row: Mapping[str, Any], place: str) -> dict[str, Any] | BadRow:
        """Return the cells of a row, or why it cannot be read: 2.5 in a column of JSON makes floats of its numbers."""
        cells = {name: as_stored(filled(cell), self._types.get(name)) for name, cell in row.items()}
        read = [*self._shape.columns, *self._shape.also] if self.loaded.info.builder_name == "json" else []
        for name in read:
            if (found := inexact(cells.get(name))) is not None:
                return BadRow(
                    f"{place}: column {name!r} holds {found}, a number above 2^53, of which the package datasets "
                    "may have lost digits: read the files with {source: file, path: ...}"
                )
        return cells

    @functools.cached_property
    def _types(self) -> dict[str, Any]:
        """Arrow's types of the columns; of some streams they are not known."""
        schema = self.loaded.features.arrow_schema if self.loaded.features else ()
        return {field.name: field.type for field in schema}

    @functools.cached_property
    def loaded(self) -> Any:
        """The dataset of the library. Raises ConfigError with the first line of any error of the library."""
        return load(self.name, self.subset, self.split, streaming=self.streaming, **self._version)

    @property
    def _version(self) -> dict[str, Any]:
        """Which files of the data set are meant, in the library's words."""
        return {"revision": self.revision, **({"data_files": list(self.files)} if self.files else {})}


def _shuffled(rows: Any, number: int, seed: int, **extra: Any) -> Any:
    """Return rows of the library in the order of a pass."""
    return rows.shuffle(seed=int(short_digest(f"{number} {seed}")[:8], 16) >> 1, **extra)  # NumPy's seeds are 32 bits
