"""Load data sets with the package `datasets`: CSV columns as texts, and each of its errors as one of ours."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.common.errors import ConfigError
from experiments.common.files import read_note, write_json
from experiments.common.hashing import file_stamp, json_digest
from experiments.data.files import CACHE

NOTE = "control-llm-files.json"  # in a cache of the library: size and digest of each local file that it is made of


def load(name: str, subset: str | None, split: str, streaming: bool = False, **options: Any) -> Any:
    """Return a data set of the library. options: further ones of its `load_dataset`.

    Raises ConfigError with the first line of any error of the library.
    """
    import datasets

    _check_saved(Path(name))
    try:
        files = local_files(name, subset, **options)
        if "data_files" not in options:
            _check_inside(Path(name), files)
        found = datasets.load_dataset(name, subset, split=split, streaming=streaming, **options)
        check_times(found, files)
        as_text = _as_text(found)
        if not as_text:
            return found
        texts = {"features": as_text, "keep_default_na": False}
        found = datasets.load_dataset(name, subset, split=split, streaming=streaming, **texts, **options)
        check_times(found, files)
        return found
    except ConfigError:
        raise
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


def local_files(name: str, subset: str | None, **options: Any) -> list[str]:
    """Return the files of this machine that a data set is made of, of all splits; none for one of the Hub."""
    import datasets

    if not Path(name).is_dir() and ("/" in name or not options.get("data_files")):
        return []
    parts = datasets.load_dataset_builder(name, subset, **options).config.data_files or {}
    return [str(file) for part in parts.values() for file in part if Path(file).is_file()]


def check_times(rows: Any, files: Sequence[str]) -> None:
    """Raise ConfigError if the library's cache is of other local files than those of now. A stream has no cache.

    The library goes by their times, which are equal in images, archives and copies that keep them. What its cache was
    made of is noted there.
    """
    if not getattr(rows, "cache_files", None) or not files:
        return
    now = {file: file_stamp(Path(file))[::2] for file in files}
    note = Path(rows.cache_files[0]["filename"]).parent / NOTE
    known = read_note(note)
    if changed := [file for file in now if known.get(file, now[file]) != now[file]]:
        raise ConfigError(
            f"{changed[0]} is another file than when the package datasets read it, but has the same time, so the old "
            f"one would be read from its cache: give it a new time, touch {shlex.quote(changed[0])}"
        )
    with suppress(OSError):  # a cache of others
        write_json(note, known | now)


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


def _check_inside(folder: Path, files: Sequence[str]) -> None:
    """Raise ConfigError for a folder whose card (README.md) names files of elsewhere: of somebody's, maybe private."""
    inside = tuple(os.path.join(place(folder), "") for place in (os.path.abspath, os.path.realpath))
    if strange := [file for file in files if not os.path.abspath(file).startswith(inside)]:
        raise ConfigError(
            f"dataset {str(folder)!r}: its README.md names {strange[0]}, which is not in this folder: correct it, or "
            "name the files that you mean with files:"
        )


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
