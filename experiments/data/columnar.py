"""Read Parquet and Arrow files in batches of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from experiments.common.errors import ConfigError
from experiments.common.files import repeated


def class_names(file: Path) -> dict[str, list[str]]:
    """Return the names of the classes of each column that holds their numbers, as the package datasets writes them."""
    batch = next(BATCHES[file.suffix.lower()](file), None) if file.suffix.lower() in BATCHES else None
    written = (batch.schema.metadata or {}).get(b"huggingface") if batch else None
    features = json.loads(written or "{}").get("info", {}).get("features", {})
    return {name: one["names"] for name, one in features.items() if isinstance(one, dict) and one.get("names")}


def check_names(names: Iterable[str], file: Path) -> None:
    """Raise ConfigError for a column that is there twice, since one of both would be lost. Several may have no name."""
    if twice := repeated(name for name in names if name):
        raise ConfigError(f"data file {file} has the column {twice!r} twice: rename one of them")


def _parquet(file: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            check_names(table.schema_arrow.names, file)
            yield from table.iter_batches(batch_size=1024)
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"data file {file} is not Parquet: {error}") from error


def _arrow(file: Path) -> Iterator[Any]:
    """Read the batches of a file, or of a stream as `datasets` saves it."""
    import pyarrow

    with pyarrow.memory_map(str(file)) as source:
        try:
            table = pyarrow.ipc.open_file(source)
            check_names(table.schema.names, file)
            yield from map(table.get_batch, range(table.num_record_batches))
        except pyarrow.ArrowInvalid:
            source.seek(0)
            try:
                stream = pyarrow.ipc.open_stream(source)
                check_names(stream.schema.names, file)
                yield from stream
            except pyarrow.ArrowInvalid as error:
                raise ConfigError(f"data file {file} is not Arrow: {error}") from error


BATCHES: dict[str, Callable[[Path], Iterator[Any]]] = {".parquet": _parquet, ".arrow": _arrow}
