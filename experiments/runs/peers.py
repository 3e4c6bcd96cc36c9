"""Trials of a study compare only if they are trained on the same data and begin at the same base model.

A run knows the data that it began with. Each trial is a run of its own, so data that changes between two trials, in a
study of days, would be seen by neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from experiments.common.errors import RunError
from experiments.common.files import read_note
from experiments.common.owner import SOURCES
from experiments.common.result_folders import trial_runs
from experiments.common.yaml_values import load_yaml
from experiments.config import ExperimentConfig
from experiments.models.weights_digest import weights_digest
from experiments.runs.base_records import TIMING
from experiments.runs.prepared import Inputs

READ = ("base_model", "trust_remote_code", "precision", "seed", "data", "evaluation")  # sections that name inputs


def check_peers(inputs: Inputs, folder: Path, study: str) -> None:
    """Raise RunError if an earlier trial with the same settings of data and base read other data or other weights.

    folder: of this trial's run. Searched data differs between trials, so only those of equal sections are compared.
    """
    root = folder.parents[1]
    if (peer := next(_peers(inputs.config, folder, root / "studies" / study), None)) is None:
        return
    known, own = read_note(peer / SOURCES), inputs.digests
    changed = [name.split(" ", 1)[1] for name in own if known.get(name, own[name]) != own[name]]
    weights = weights_digest(inputs.model, root / "cache" / "base" / "weights.json")
    if read_note(peer / "base" / TIMING).get("weights", weights) != weights:
        changed.append(f"base_model {inputs.config.base_model}")
    if changed:
        raise RunError(
            f"{', '.join(changed)} has changed since {peer.name} ran, so this trial would not compare with it: bring "
            "the old one back and give the same command, or give the study another name"
        )


def _peers(config: ExperimentConfig, folder: Path, study: Path) -> Iterator[Path]:
    """Yield the run folders of other trials that have the same sections."""
    if not (study / "study.yaml").is_file():
        return
    own = _sections(config.to_dict())
    for run in trial_runs(study, sorted(folder.parent.glob(f"{study.name}-*"))):
        if run != folder and (run / SOURCES).is_file() and _sections(_values(run / "config.yaml")) == own:
            yield run


def _sections(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values.get(name) for name in READ}


def _values(file: Path) -> dict[str, Any]:
    """Return the plain values of a config; none of one that cannot be read, which its own run says."""
    try:
        values = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
