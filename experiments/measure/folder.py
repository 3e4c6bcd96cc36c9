"""Open the folder of a measurement: one process at a time, the settings noted, and refused if it is of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.files import read_json, write_json
from experiments.common.paths import default_root
from experiments.data.items import NewTask, NewText
from experiments.evaluation.evaluate import Suites
from experiments.measure.base import Base
from experiments.measure.config import MeasureConfig
from experiments.measure.files import content, same_content, stamp
from experiments.measure.models import Model
from experiments.measure.session import Session, draw_suites
from experiments.models.turns import said_unwritten
from experiments.runs.base_records import changed_suites
from experiments.runs.result_file import RESULT
from experiments.runs.run import errors_explained, only_one
from experiments.tracking.tracker import Tracker

NOTE = "measure.json"  # of the folder: the settings, and what changes with the base's files


@dataclass(frozen=True)
class Folder:
    """Where a command keeps its results: `out`, or `root`/runs/COMMAND-NAME-DIGEST.

    root: also of the tracking store and the caches; default: the bench's. more: what else the digest depends on, next
    to the settings and the base's files. arms: names of what will be measured.
    """

    command: str
    name: str
    out: str | Path | None = None
    root: str | Path | None = None
    more: Sequence[str] = ()
    arms: Sequence[str] = ()

    @property
    def base_root(self) -> Path:
        return Path(self.root).expanduser() if self.root else default_root()

    def path(self, digest: str) -> Path:
        """Return the folder for a digest of `digest_of`."""
        own = Path(self.out or self.base_root / "runs" / f"{self.command}-{self.name}-{digest}")
        return own.expanduser().resolve() if self.out else own

    def digest_of(self, config: MeasureConfig, base: Base) -> str:
        """Return the digest of the settings and of what changes with the files of the base."""
        return config.digest(stamp(base.folder), *self.more)


@contextmanager
def open_session(
    config: MeasureConfig,
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    task: tuple[NewTask | NewText, ...],
    where: Folder,
    models: list[Model],
    say: Callable[[str], None],
) -> Iterator[Session]:
    """Give the session, while no other process has the folder. models: those that will be measured.

    Raises ConfigError for a folder of another measurement, for an expansion of other weights than the base's, and as
    `draw_suites` before anything is written.
    """
    suites = draw_suites(config.evaluation, config, base, tokenizer, task)
    root, digest = where.base_root, where.digest_of(config, base)
    folder = where.path(digest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with errors_explained(folder.parent), only_one(folder):
        say_replaced(folder, where.arms, say)
        facts = {"command": where.command, "arms": list(where.arms)}
        note_settings(folder, config, digest, base.folder, **facts)
        tracker, begun = Tracker(root, "measure"), stamp(base.folder)
        session = Session(config, base, tokenizer, task, suites, root, folder, tracker, say, begun)
        session.tracker.reap()
        session.check_fingerprints(models)
        for line in said_unwritten(tokenizer) + [session.arithmetic] * (config.precision == "auto"):
            say(line)
        _say_changed(folder, suites, [*where.arms, *(model.name for model in models)], say)
        yield session


def say_replaced(folder: Path, arms: Sequence[str], say: Callable[[str], None]) -> None:
    """Say that a report of other models, which were measured here before, is replaced by that of these."""
    others = [name for name in read_json(folder / NOTE).get("arms", ()) if name not in arms]
    if others:
        say(
            f"report and figures.json of {', '.join(others)} in {folder} are replaced; the records stay: name all "
            "models in one command for a report of all, or give each --out"
        )


def _say_changed(folder: Path, suites: Suites, arms: Sequence[str], say: Callable[[str], None]) -> None:
    """Warn that figures on disk are of other questions than are asked now. What is measured anew is refused later."""
    known = [name for name in dict.fromkeys(arms) if (folder / "arms" / name / RESULT).is_file()]
    if known and (changed := changed_suites(folder, suites)):
        say(
            f"warning: {', '.join(changed)}: the questions, or the code that asks them, have changed since the "
            f"measurement of {', '.join(known)}; the figures are of the earlier ones (delete {folder} to measure anew)"
        )


def note_settings(folder: Path, config: MeasureConfig, digest: str, base: Path, **facts: Any) -> None:
    """Note the settings and other facts. Raises ConfigError if the folder is of others: its models would not compare.

    `control-llm runs` and `show` read the facts.
    """
    known = read_json(folder / NOTE)
    if known and (known["digest"] != digest or not same_content(known.get("content"), base)):
        raise ConfigError(
            f"{folder} holds a measurement of another base, or with other settings: choose another --out, or delete it"
        )
    if folder.is_dir() and not known and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no measurement (no {NOTE}): choose another --out")
    write_json(folder / NOTE, {"digest": digest, "content": content(base), **facts, **config.to_dict()})
