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
from experiments.common.hashing import file_stamp, json_digest, short_digest
from experiments.common.section import later_field
from experiments.common.spread import spread
from experiments.data.cells import as_stored
from experiments.data.columns import PART, BadRow, Chunk, Columns
from experiments.data.files import CACHE, LocalFile, missing_parts
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
        folder = Path(self.name)
        inside = () if self.files else sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))
        unread = [*missing_parts(inside), *self.unread(self.loaded.column_names or (), self._place)]
        unread += said_classes(self._read_features())
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
        import datasets

        try:
            files = {"data_files": list(self.files)} if self.files else {}
            builder = datasets.load_dataset_builder(self.name, self.subset, revision=self.revision, **files)
            found = (builder.config.data_files or {}).get(self.split.partition("[")[0], ())
            if all(Path(file).is_file() for file in found):
                return json_digest([[file, *file_stamp(Path(file))[::2]] for file in found]) if found else ""
            return json_digest([list(map(str, found)), [list(one) for one in found.origin_metadata]])
        except Exception:  # of the library, as in `loaded`, or of a version without these attributes
            return ""

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
        numbered: list[Row] = [(f"row {n}", self._cells(row)) for n, row in enumerate(rows, start=start + 1)]
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
                cells = self._cells(row)
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
        rows = ((f"row {n}", self._cells(row)) for n, row in enumerate(self.loaded.select_columns(self._read), start=1))
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

    def _cells(self, row: Mapping[str, Any]) -> dict[str, Any]:
        features = self.loaded.features or {}  # not known of some streams
        types = {name: getattr(features.get(name), "dtype", "") for name in row}
        return {name: as_stored(filled(cell), types[name]) for name, cell in row.items()}

    @functools.cached_property
    def loaded(self) -> Any:
        """The dataset of the library. Raises ConfigError with the first line of any error of the library."""
        _check_saved(Path(self.name))
        try:
            found = self._loaded()
            as_text = _as_text(found)
            return self._loaded(features=as_text, keep_default_na=False) if as_text else found
        except Exception as error:  # the library raises a dozen classes, from ValueError to its own HTTP errors
            raise ConfigError(
                f"dataset {self.name!r} (subset {self.subset}, split {self.split!r}) could not be loaded: "
                f"{(str(error).strip() or type(error).__name__).splitlines()[0]}. With no network, give a local folder"
            ) from error

    def _loaded(self, **options: Any) -> Any:
        import datasets

        files = {"data_files": list(self.files)} if self.files else {}
        return datasets.load_dataset(
            self.name,
            self.subset,
            split=self.split,
            revision=self.revision,
            streaming=self.streaming,
            **files,
            **options,
        )


def _as_text(rows: Any) -> Any:
    """Return features in which columns of CSV files are texts; nothing if they are, or of other files.

    They would be read as other types, which source `file` never does: 007 as 7, 1.50 as 1.5, and the words None and NA
    as empty. The types of a stream are not known before its rows.
    """
    import datasets

    if rows.info.builder_name != "csv":
        return None
    plain = [str(getattr(feature, "dtype", "")) for feature in (rows.features or {}).values()]
    if plain and all(dtype.endswith("string") for dtype in plain) and not _has_empty(rows):
        return None
    names: Mapping[str, Any] = rows.features or next(iter(rows), {})
    return datasets.Features({name: datasets.Value("string") for name in names}) or None


def _has_empty(rows: Any) -> bool:
    """Whether a cell is empty, or was read so; not known of a stream."""
    table = getattr(rows, "data", None)
    return table is None or any(column.null_count for column in table.columns)


def _check_saved(folder: Path) -> None:
    """Raise ConfigError for a folder of `save_to_disk` that `load_dataset` reads in another way than it was saved.

    It refuses a single data set, and of several it takes the results of `map` next to them for rows.
    """
    caches = [file for file in folder.glob("*/*.arrow") if CACHE.fullmatch(file.name)]
    if (folder / "state.json").is_file():
        raise ConfigError(
            f"dataset {str(folder)!r} was saved by save_to_disk: {{source: file, path: {folder}}} reads it"
        )
    if (folder / "dataset_dict.json").is_file() and caches:
        raise ConfigError(
            f"dataset {str(folder)!r} has caches of the package datasets, such as {caches[0].relative_to(folder)}, "
            f"which would be read as rows: delete them, or name one split: {{source: file, path: {caches[0].parent}}}"
        )


def _shuffled(rows: Any, number: int, seed: int, **extra: Any) -> Any:
    """Return rows of the library in the order of a pass."""
    return rows.shuffle(seed=int(short_digest(f"{number} {seed}")[:8], 16) >> 1, **extra)  # NumPy's seeds are 32 bits
