"""Load data sets with the package `datasets`: CSV columns as texts, and each of its errors as one of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common.errors import ConfigError
from experiments.common.hashing import file_stamp, json_digest
from experiments.data.files import CACHE


def load(name: str, subset: str | None, split: str, **options: Any) -> Any:
    """Return a data set of the library. options: of its `load_dataset`.

    Raises ConfigError with the first line of any error of the library.
    """
    import datasets

    _check_saved(Path(name))
    try:
        found = datasets.load_dataset(name, subset, split=split, **options)
        as_text = _as_text(found)
        if not as_text:
            return found
        return datasets.load_dataset(name, subset, split=split, features=as_text, keep_default_na=False, **options)
    except Exception as error:  # the library raises a dozen classes, from ValueError to its own HTTP errors
        raise ConfigError(
            f"dataset {name!r} (subset {subset}, split {split!r}) could not be loaded: "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]}. With no network, give a local folder"
        ) from error


def files_digest(name: str, subset: str | None, split: str, **options: Any) -> str:
    """Return a digest of a data set's files: its commit, or size and bytes of local ones. Empty if nobody knows now."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, subset, **options)
        found = (builder.config.data_files or {}).get(split.partition("[")[0], ())
        if all(Path(file).is_file() for file in found):
            return json_digest([[file, *file_stamp(Path(file))[::2]] for file in found]) if found else ""
        return json_digest([list(map(str, found)), [list(one) for one in found.origin_metadata]])
    except Exception:  # of the library, as in `load`, or of a version without these attributes
        return ""


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
