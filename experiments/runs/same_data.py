"""Digests of what the trials of a study must have in common: files of data, what suites ask, the template, the base.

Each trial is a run of its own, with a folder of its own. So a file that is edited between two of them is nobody's
change: both runs are whole, and their figures would be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctrl.computes import computes, trains
from experiments.common.files import read_note
from experiments.common.hashing import json_digest
from experiments.common.owner import SOURCES
from experiments.config import ExperimentConfig, run_config
from experiments.data.base_text import BaseText
from experiments.data.files import LocalFile
from experiments.data.hub import HuggingFace
from experiments.data.procedural import ReasoningGym
from experiments.data.stages import Earlier
from experiments.evaluation.cache import own_code, tokenizer_digest
from experiments.models.generation import reply_ends
from experiments.models.precision import Precision
from experiments.models.weights_digest import weights_digest
from experiments.runs.base_records import TIMING, asked, config_digest
from experiments.runs.prepared import Inputs
from experiments.tracking.machine import process_tags

OF_THE_BASE = (BaseText, Earlier)  # written by it, or of `data.new`
Agree = Callable[[Mapping[str, str]], None]  # gets `digests_of`; raises RunError if another trial has others


def digests_of(inputs: Inputs, root: Path) -> dict[str, str]:
    """Return the digests by what they are of: what the config says of it, and a digest of all of its settings there.

    Trials may search these, so only equal settings must give equal digests. root: of the cache. What the base model
    writes is left out, since it depends on the machine; so do the digests of `datasets`, which are compared on one.
    """
    weights = weights_digest(inputs.model, root / "cache" / "base" / "weights.json")
    base = {
        "weights": weights,
        "device": inputs.model.device.type,
        "tokenizer": tokenizer_digest(inputs.tokenizer),
        "ends": reply_ends(inputs.model, inputs.tokenizer),
        "config": config_digest(computes(inputs.model.config) | trains(inputs.model.config)),
        "precision": Precision(inputs.config.precision).name,  # `auto` depends on the machine
        "suites": asked(inputs.suites),
    } | own_code(inputs.model)
    tags = process_tags()
    return _digests(inputs.config, inputs.digests, base, tags.get("machine_id", tags["host"]))


def digests_noted(run: Path) -> dict[str, str]:
    """Return those that the folder of a run notes. Raises ConfigError."""
    config = run_config(run)
    return _digests(config, read_note(run / SOURCES), read_note(run / "base" / TIMING), "")


def named(keys: Sequence[str]) -> str:
    """Return what digests are of, for a message."""
    return ", ".join(dict.fromkeys(key.rpartition(" ")[0] for key in keys))


def _digests(
    config: ExperimentConfig, noted: Mapping[str, str], base: Mapping[str, Any], machine: str
) -> dict[str, str]:
    """noted: digests as `Inputs` has them. machine: an id; empty if nothing of `datasets` can be compared."""
    found: dict[str, str] = {}
    for i, source in enumerate((*config.data.new, *config.data.old)):
        of_rows, files = (noted.get(f"{i} {name}", "") for name in (source.label, f"the files of {source.label}"))
        settings = source.model_dump(mode="json", exclude={"share"})
        if config.data.choose is not None and i >= len(config.data.new):
            content = files  # see `ChosenExamples.origin`: the digest is of the examples that the base chose
        else:
            content = json_digest([of_rows, files]) if of_rows or files else ""
        if not content or isinstance(source, OF_THE_BASE):
            continue
        if isinstance(source, LocalFile):
            found[_key(source.path, settings)] = content
        elif isinstance(source, ReasoningGym):  # of the version of its package too
            found[_key(f"task {source.name}", settings)] = content
        elif not isinstance(source, HuggingFace):
            found[_key(f"the data of source {source.source}", [settings, config.seed])] = content
        elif machine:
            found[_key(source.name, [settings, machine])] = content
    for one in config.evaluation.kept_files:
        if digest := noted.get(f"kept {one.task}"):
            found[_key(one.path, one.model_dump(mode="json"))] = digest
    names = {
        "weights": "base_model",
        "tokenizer": "the tokenizer or chat template of",
        "ends": "the ends of replies of",
        "config": "the config of",
        "precision": "the precision of",
        "code": "the Python files of",
    }
    for part, name in names.items():
        packed = part == "weights" and config.quantised  # in the way of a device
        if part in base and (machine or not packed):
            reads: dict[str, Any] = {"weights": None, "config": None, "precision": config.precision, "code": None}
            reads |= {"weights": [config.quantised, base["device"], machine]} if packed else {}
            given = [config.base_model, reads.get(part, config.data.chat_settings)]
            found[_key(f"{name} {config.base_model}", given)] = str(base[part])
    for suite, digest in base.get("suites", {}).items():
        found[_key(f"what suite {suite} asks", _asked_by(config, suite))] = str(digest)
    return found


def _asked_by(config: ExperimentConfig, suite: str) -> list[Any]:
    """Return the settings on which the items of a suite may depend (`DrawnSuite.draw`)."""
    of_arms = {"old", "replay", "choose", "order"}
    data = config.data.model_dump(mode="json", exclude={**dict.fromkeys(of_arms, True), "new": {"__all__": {"share"}}})
    evaluation = config.evaluation
    settings = evaluation.settings(suite).model_dump(mode="json")
    return [config.base_model, config.trust_remote_code, config.seed, data, evaluation.new_items, settings]


def _key(name: str, settings: Any) -> str:
    return f"{name} {json_digest(settings)[:12]}"
