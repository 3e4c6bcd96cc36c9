"""Read what the config of a run, or the note of a measurement, says of its arms: names, graders, stages."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.common.errors import ConfigError, DamagedError
from experiments.common.files import read_json, read_note
from experiments.common.owner import CONFIG, SOURCES
from experiments.common.paths import SHIPPED
from experiments.common.result_folders import MEASUREMENT
from experiments.common.yaml_values import read_yaml
from experiments.reporting.stream import stage_steps

OF_ROWS = ("file", "huggingface")  # sources whose replies a grader of the YAML reads
MODEL = "model.json"  # in an arm's folder: what `control-llm measure` measured, and suites left out with the reasons


def named_arms(folder: Path) -> list[str]:
    """Return the folders that the arms of a run, or the models of a measurement, will have; none if nothing says.

    A run that was stopped has no folder of the arms that follow, and nobody may take it for whole. Raises DamagedError
    if what would say it is gone or cut; earlier versions did not note that it must be there.
    """
    config, advice = folder / "config.yaml", "bring it back, since it names the arms"
    try:
        values = read_yaml(config, SHIPPED, "config file")[1]
        own = [f"{arm['name']}-{float(rate):g}" for arm in values["arms"] for rate in arm["learning_rates"]]
    except (ConfigError, KeyError, TypeError, ValueError) as error:  # of a measurement, or of another version
        if CONFIG in read_note(folder / SOURCES) and not (folder / MEASUREMENT).is_file():
            raise DamagedError(f"{config} is {'damaged' if config.is_file() else 'gone'}: {advice}") from error
        own = []
    note = folder / MEASUREMENT
    if not note.is_file() and any(folder.glob(f"arms/*/{MODEL}")):
        raise DamagedError(f"{note} is gone: {advice}")
    return [*own, *read_json(note, advice).get("arms", ())]


def check_config(folder: Path) -> None:
    """Raise ConfigError if a run's config was edited or cut since: arms that it does not name would not be missed.

    Of a config that only another version can read, the arms are read as they are there.
    """
    if CONFIG not in read_note(folder / SOURCES):
        return
    from experiments.config import check_unedited, load_config  # loads torch

    try:
        config = load_config(folder / "config.yaml")
    except ConfigError:
        return
    check_unedited(folder, config)


def graders_of(folder: Path) -> str:
    """Name the graders of the new task of a run or a measurement; empty if nothing says."""
    if note := read_note(folder / MEASUREMENT):
        return json.dumps(note.get("grader") or "exact") if note.get("new") else ""
    try:
        sources = read_yaml(folder / "config.yaml", SHIPPED, "config file")[1]["data"]["new"]
        tables = [one for one in sources if one["source"] in OF_ROWS]
    except (ConfigError, KeyError, TypeError, ValueError):  # of another version
        return ""
    return ", ".join(sorted({json.dumps(one.get("grader") or "exact") for one in tables}))


def room_of(folder: Path) -> dict[tuple[str, str], int]:
    """Return the most tokens of a reply by suite and task; nothing of earlier versions, which did not note it."""
    noted = read_note(folder / "base" / "timing.json").get("room", {})
    return {(suite, task): most for suite, tasks in noted.items() for task, most in tasks.items()}


def grading_of(folder: Path) -> dict[tuple[str, str], str]:
    """Return digests of what decides which replies are right, by suite and task; nothing of earlier versions."""
    noted = read_note(folder / "base" / "timing.json").get("graded", {})
    return {(suite, task): digest for suite, tasks in noted.items() for task, digest in tasks.items()}


def read_stages(folder: Path) -> dict[str, int]:
    """Find the last step of each stage; none if the run is no stream, or its config is of another version.

    Raises ConfigError if the config was edited: its stages are not those of the records.
    """
    path = folder / "config.yaml"
    try:
        data = read_yaml(path, SHIPPED, "config file")[1].get("data") or {}
        if data.get("order") != "sequential":
            return {}
        from experiments.config import check_unedited, load_config  # loads torch; few runs need it

        config = load_config(path)
    except ConfigError:
        return {}
    check_unedited(folder, config)
    return stage_steps(config)
