"""Write an arm's result with the digests of the files that it was made from, and refuse it if they no longer fit.

`result.json` has, next to the result, `made_from` (path in the run's folder -> SHA-256: item records of the arm and of
the base model, trained weights), `owner` (settings and data of the run, see `common.owner`), for an operation `weights`
(folder of each arm that it changed -> digest of what that arm had trained), and `digest`, of all other values. Results
of earlier versions have none of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.errors import DamagedError, RunError
from experiments.common.files import is_damaged, read_json, read_note, write_json
from experiments.common.hashing import file_digest, json_digest, same_file
from experiments.common.owner import ARM, CONFIG, LAUNCH, SOURCES, anew, other_than, owner_of, settings_noted
from experiments.common.owner import MEASURED as MEASURED_BY
from experiments.records import MEASURED, ArmResult

RESULT, MADE_FROM, OWNER, WEIGHTS, DIGEST = "result.json", "made_from", "owner", "weights", "digest"
LOADED = (".json", ".safetensors", ".bin", ".pt")  # endings of what is read with a model
BASE_ITEMS, BASE_NOTES, BASE_REWORDED = "base/items.jsonl", "base/timing.json", "base/reworded.jsonl"
OF_OPERATION = ("arm", "method", "learning_rate")
AGAIN = "bring it back, or delete it, and the same command makes the result again"
BASE_AGAIN = "bring it back, run the same command again, or {}"
DELETE_FOLDER = "bring its own back, or delete the folder {}, and the same command makes it again"
TRAIN_AGAIN = "bring it back, or delete the folder {}, and the same command trains and measures it again"


def write_result(folder: Path, result: ArmResult, changed: Mapping[Path, str] | None = None) -> None:
    """Write the result of an arm or an operation, whose records and weights are in its folder, two below the run's.

    changed: of the arms whose trained weights an operation changed, the folder and its `trained_digest` when they were
    loaded. Raises RunError if one has others by now: `run --fresh` may have trained it again.
    """
    run = folder.parents[1]
    check_trained(changed or {})
    made_from = [run / BASE_ITEMS, *folder.glob("items-*.jsonl"), *folder.glob("trained/*")]
    files = {path.relative_to(run).as_posix(): file_digest(path) for path in sorted(made_from) if path.is_file()}
    values = {**result.to_dict(), MADE_FROM: files, OWNER: owner_of(run, **settings_noted(folder))}
    if changed:
        values[WEIGHTS] = {os.path.relpath(arm, run): digest for arm, digest in changed.items()}
    write_json(folder / RESULT, {**values, DIGEST: json_digest(values)})


def read_result(file: Path, own: bool = False) -> ArmResult:
    """Read what `write_result` wrote. Raises DamagedError for a file that was changed, or that is of another arm.

    own: also for one of another run, or of other settings or weights than are there now.
    """
    values = result_values(file)
    if own:
        check_owner(file, values)
    try:
        result = ArmResult.from_dict({k: v for k, v in values.items() if k not in (MADE_FROM, OWNER, WEIGHTS, DIGEST)})
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{file} is no result of an arm ({type(error).__name__}: {error}): {AGAIN}") from error
    return result


def check_files(file: Path, trained: bool = False) -> None:
    """Raise DamagedError if item records that a result was made from are gone or others, or if it is of another run.

    trained: if the weights are others too, or have files next to them that the arm did not write.
    """
    folder, values = file.parent, result_values(file)
    run = folder.parents[1]
    check_owner(file, values)
    if trained:
        _check_strange(file, values)
    for name, digest in values.get(MADE_FROM, {}).items():
        path = run / name
        if _of_weights(name) is not trained or (path.is_file() and file_digest(path) == digest):
            continue
        state = "is not the file that" if path.is_file() else "is gone, and"
        advice = TRAIN_AGAIN.format(folder) if name != BASE_ITEMS else BASE_AGAIN.format(anew(run))
        raise DamagedError(f"{path} {state} {file} was made from: {advice}")


def floor_file(run: Path) -> Path | None:
    """Return the file of the base's answers in other words, for the A/A floor; None for a run without them.

    Raises DamagedError if it is gone, or is not as the run noted it. Records that were fetched have neither.
    """
    file, note = run / BASE_REWORDED, run / BASE_NOTES
    noted = read_note(note).get("files", {}).get(file.name)
    if is_damaged(note) or (noted and not same_file(file, noted)):
        raise DamagedError(f"{file} is not as {note} notes it: {BASE_AGAIN.format(anew(run))}")
    return file if file.is_file() else None


def _check_strange(file: Path, values: Mapping[str, Any]) -> None:
    """Raise DamagedError for a file that would be loaded with an arm's weights, such as an adapter of another arm."""
    folder = file.parent / "trained"
    noted = {Path(name).name for name in values.get(MADE_FROM, {}) if _of_weights(name)}
    strange = [path for path in sorted(folder.glob("*")) if path.suffix in LOADED and path.name not in noted]
    if noted and strange:
        raise DamagedError(f"{strange[0]} is not of this arm, which did not write it: move it out of {folder}")


def check_owner(file: Path, values: Mapping[str, Any]) -> None:
    """Raise DamagedError for a result of a run with other settings or data, and of other weights than an arm has."""
    folder, run = file.parent, file.parents[2]
    if other_than(values.get(OWNER, {}), owner_of(run, **settings_noted(folder))):
        raise DamagedError(
            f"{file} is of a run with other settings or data than {run} (see {SOURCES} or {MEASURED_BY} there, and the "
            f"arm's {ARM}): "
            f"{DELETE_FOLDER.format(folder)}"
        )
    for name, digest in values.get(WEIGHTS, {}).items():
        arm = Path(os.path.normpath(run / name))  # as it was noted: the run may be a link to another disk
        if (arm / RESULT).is_file() and trained_digest(arm) != digest:
            raise DamagedError(f"{file} was made from other weights than {arm} has now: {DELETE_FOLDER.format(folder)}")


def check_operation_of(file: Path, result: ArmResult, changed: Sequence[Path]) -> None:
    """Raise DamagedError for the result of another operation, or on other arms, whose folder has the same name.

    changed: the folders of the arms whose weights the operation changes.
    """
    values = result_values(file)
    arm, method, rate = (values.get(key) for key in OF_OPERATION)
    found = ArmResult(str(arm), str(method), float(rate or 0), "finished", operation=values.get("operation"))
    noted, own = values.get(WEIGHTS), sorted(map(trained_digest, changed))
    if (found.arm, found.label) != (result.arm, result.label) or (noted and sorted(noted.values()) != own):
        raise DamagedError(
            f"{file} is the result of {found.label!r}, not of {result.label!r} on these arms, which has the same "
            f"folder: move {file.parent} out of {file.parents[1]}, and the same command makes it"
        )


def check_trained(loaded: Mapping[Path, str]) -> None:
    """Raise RunError if an arm has other weights than when they were loaded, or none. loaded: its `trained_digest`."""
    if other := [arm for arm, digest in loaded.items() if trained_digest(arm) != digest]:
        raise RunError(
            f"{other[0]} was trained again, or removed, while its earlier weights were in use: give the same command "
            "again when it has a result"
        )


def trained_digest(arm: Path) -> str:
    """Return a digest of what an arm trained, as its result notes it; empty if an earlier version noted nothing."""
    files = result_values(arm / RESULT).get(MADE_FROM, {})
    return json_digest({name: digest for name, digest in files.items() if _of_weights(name)}) if files else ""


def _of_weights(name: str) -> bool:
    """Whether a file that a result was made from is one of arms/ARM/trained/; a measured model may be called so."""
    return Path(name).parts[2:3] == ("trained",)


def owners_noted(run: Path) -> dict[str, Any]:
    """Return the digests of the data that a run had, as its results and checkpoints note them.

    So a run whose SOURCES is gone, or lacks a name, knows what it began with. Damaged ones are found where they are
    read.
    """
    owners = [read_note(file).get(OWNER, {}) for file in run.glob(f"*/*/{RESULT}")]
    owners += [read_note(file).get(OWNER, {}) for file in run.glob(f"arms/*/checkpoints/*/{LAUNCH}")]
    noted = {name: value for owner in owners for name, value in owner.items()}
    return {name: value for name, value in noted.items() if name not in ("arm", "settings", CONFIG)}


def whole_results(files: Iterable[Path]) -> list[ArmResult]:
    """Read results, each with the records that it was made from. Raises DamagedError."""
    results = []
    for file in files:
        results.append(read_result(file))
        check_files(file)
    return results


def is_result(values: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether the values of a result's file are a result that is known from elsewhere: the storage of a study."""
    return json_digest({name: values.get(name) for name in result}) == json_digest(result)


def result_values(file: Path) -> dict[str, Any]:
    """Return the plain values of a result, an empty dict without one. Raises DamagedError as `read_result`."""
    values = read_json(file, AGAIN)
    digest = values.get(DIGEST)
    if digest is not None and digest != json_digest({k: v for k, v in values.items() if k != DIGEST}):
        raise DamagedError(f"{file} was changed after it was written: {AGAIN}")
    if file.parent.parent.name == "arms" and {"arm", "method", "learning_rate"} <= values.keys():
        own = values["arm"] if values["method"] == MEASURED else f"{values['arm']}-{values['learning_rate']:g}"
        if file.parent.name != own:
            raise DamagedError(f"{file} is the result of {own}, another arm: {AGAIN}")
    return values
