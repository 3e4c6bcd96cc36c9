"""Soften a model: measure points of the path from its base to it, choose one, and write it as a plain model.

All state is in a folder, as of `measure`: the same call goes on there.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ctrl.computes import computes, differences
from experiments.common.errors import ConfigError
from experiments.common.files import read_note, whole_folder, write_json
from experiments.common.hashing import file_digest, folder_digests, json_digest
from experiments.measure.base import Base
from experiments.measure.config import measure_config
from experiments.measure.files import stamp, tokenizer_folder
from experiments.measure.folder import Folder, open_session
from experiments.measure.gate import conditions as read_conditions
from experiments.measure.kinds import Kind
from experiments.measure.models import Checkpoint, Model, read_base, read_models
from experiments.measure.session import Session
from experiments.measure.tokenizers import load_tokenizer
from experiments.models.template import save_tokenizer
from experiments.posthoc.checks import as_printed, check_distinct
from experiments.posthoc.choice import Point
from experiments.records import Estimate, Record, read_records
from experiments.runs.baseline import score
from experiments.runs.run import only_one_process
from experiments.scorecard.figures import GAINS
from experiments.scorecard.halves import of_half
from experiments.soften.choice import barrier, choose
from experiments.soften.endpoint import endpoint
from experiments.soften.path import By, WeightPath
from experiments.soften.report import SoftenReport, write_card, write_report

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
CHOSEN, OF_MODEL = "chosen.json", ("alpha", "by", "rule", "files")  # its fields on a model that was written
ELSEWHERE = "choose another folder"
SUITES = ("kept", "drift", "text")  # and `new`, if there is a file


@dataclass(frozen=True)
class Softened:
    """What a call leaves. alpha: of the chosen point; None if no point meets the conditions, and nothing is written."""

    folder: Path
    alpha: float | None
    report: SoftenReport


def soften(
    base: str,
    model: str,
    to: str | Path,
    new: str | Path | None = None,
    alphas: Sequence[float] = ALPHAS,
    by: By = "weights",
    suites: Sequence[str] | None = None,
    conditions: Sequence[str] = (),
    out: str | Path | None = None,
    root: str | Path | None = None,
    precision: str = "auto",
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    allow_other_base: bool = False,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> Softened:
    """Write to the folder `to` a model between base and model that forgets less. Raises ConfigError for wrong input.

    base, model, new, suites, out, root, changes, allow_other_base: see `measure`. settings: its further ones (`grader`,
    `kept_files`, `dtype`, ...). alphas: points of the path in (0, 1]; 1, the model itself, is always one. by: see
    `WeightPath`. conditions: see `choose`; without a new task one is needed. Half of the questions choose the point,
    its figures are those of the other half.
    """
    only_one_process("softening")
    config = measure_config(
        base, new, suites, precision=precision, seed=seed, changes=changes, default=SUITES, **settings
    )
    points, wanted = _points(alphas), read_conditions(conditions, config, "--until")
    if new is None and not wanted:
        raise ConfigError('without --new no gain is measured: add --new FILE, or a condition, --until "kl <= .05"')
    if not wanted and "nfr" not in config.figures():
        raise ConfigError(
            "lost answers choose the point, and no kept task is measured: add kept to --suites, or give a condition, "
            '--until "kl <= .05"'
        )
    target = _target(to)
    found = read_base(base, allow_other_base, config.loading)
    tokenizer = load_tokenizer(found.folder, found.remote_code)
    task = config.task(tokenizer)
    for line in config.notes(task):
        say(line)
    (chosen,) = read_models([model], found, tokenizer, task)
    _check_path(chosen, found)
    arms = [name_of(alpha) for alpha in points]
    begun = chosen.checkpoints[-1].stamp
    where = Folder("soften", chosen.name, out, root, (begun, by), arms)
    _check_target(target, where.path(where.digest_of(config, found)), to)
    with open_session(config, found, tokenizer, task, where, [chosen], say) as session:
        for line in (note for suite in session.suites.suites.values() for note in suite.notes):
            say(line)
        path = WeightPath(found.folder, endpoint(chosen, found, session.folder, say), by)
        measured = _measure(session, chosen, path, points)
        _check_halves(session, arms[-1], {condition.figure for condition in wanted} or {"nfr"})
        best, rule = choose([Point(alpha, half(session, name, True)) for alpha, name in measured.items()], wanted)
        report = write_report(session, path, measured, best, rule, _remarks(session, chosen, measured), half)
        note: dict[str, Any] = {"alpha": best and best.alpha, "by": by, "rule": rule}
        note |= {"to": str(target) if best else None, "figures": file_digest(session.folder / "figures.json")}
        if best is None:
            _note_chosen(session.folder, note, {})
        elif _filled(target):
            _check_chosen(session.folder, note, to)
        else:
            with whole_folder(target) as part:
                _write_model(part, path, best.alpha, chosen)
                write_card(part, session, path, best.alpha, rule, report)
                _check_unchanged(chosen, session, begun)
                _note_chosen(session.folder, note, folder_digests(part))
        return Softened(session.folder, best.alpha if best else None, report)


def _target(to: str | Path) -> Path:
    """Return the folder to write. Raises ConfigError where none can appear whole."""
    target = Path(to).expanduser().resolve()
    if os.path.ismount(target):
        raise ConfigError(f"--to {to} is a mount point, which cannot appear whole: name a new folder in it")
    if not next(parent for parent in target.parents if parent.exists()).is_dir():
        raise ConfigError(f"--to {to} is below a file: choose another folder")
    return target


def _write_model(part: Path, path: WeightPath, alpha: float, chosen: Model) -> None:
    """Write the model at a point with its tokenizer, which was above its checkpoints, or is that of the base."""
    path.write(alpha, part)
    if tokenizer_folder(part) != part:
        save_tokenizer(chosen.tokenizer, part)


def _note_chosen(folder: Path, note: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Note what was chosen, and the digests of the model's files.

    That is done before the model appears: after a kill in between, the same command knows it as its own. Models that
    calls with other conditions have written elsewhere stay known.
    """
    before = read_note(folder / CHOSEN)
    written = {**before.get("written", {}), **({before["to"]: before} if before.get("to") else {})}
    written = {to: {name: one.get(name) for name in OF_MODEL} for to, one in written.items() if to != note["to"]}
    values = {**note, "files": files, **({"written": written} if written else {})}
    write_json(folder / CHOSEN, {**values, "digest": json_digest(values)})


def _written(folder: Path, target: str | None) -> dict[str, Any]:
    """Return the note on the model that a call has written to a place; empty if none has."""
    last = read_note(folder / CHOSEN)
    return last if last.get("to") == target else last.get("written", {}).get(target, {})


def _check_chosen(folder: Path, note: Mapping[str, Any], to: str | Path) -> None:
    """Raise ConfigError if the model that an earlier call has written to the same place is not the one chosen now."""
    known = _written(folder, note["to"])
    if any(known.get(name) != note[name] for name in ("alpha", "by", "rule")):
        raise ConfigError(
            f"--to {to} holds alpha {known.get('alpha')}, chosen by another rule; now it is {note['alpha']}: "
            f"{ELSEWHERE}"
        )
    _note_chosen(folder, note, known.get("files", {}))


def _check_target(target: Path, folder: Path, to: str | Path) -> None:
    """Raise ConfigError for a place that is taken, unless by the model that the same command has written there."""
    known = _written(folder, str(target))
    if not _filled(target) or (known and known.get("files") == folder_digests(target)):
        return
    raise ConfigError(f"--to {to} exists and is not empty: {ELSEWHERE}")


def _check_unchanged(model: Model, session: Session, begun: str) -> None:
    """Raise ConfigError if files changed since they were measured: what was written of them has other figures.

    begun: stamp of the model at the start.
    """
    if (model.checkpoints[-1].stamp, stamp(session.base.folder)) != (begun, session.base_stamp):
        raise ConfigError(
            f"the files of {model.address} or {session.base.name} changed while the softened model was written, so it "
            "is dropped: give the same command again when nobody writes there"
        )


def _filled(target: Path) -> bool:
    return target.exists() and (not target.is_dir() or any(target.iterdir()))


def name_of(alpha: float) -> str:
    """Return the name of a point's records."""
    return f"alpha-{alpha:g}"


def _check_halves(session: Session, name: str, deciding: Collection[str]) -> None:
    """Raise ConfigError if a half of the items is without one of the figures of a point that decide, or a gain."""
    whole, wanted = half(session, name, None), {*deciding, *GAINS}
    for choosing, does in ((True, "chooses the point"), (False, "is reported")):
        if missing := sorted((wanted & whole.keys()) - half(session, name, choosing).keys()):
            raise ConfigError(
                f"{missing[0]}: no item of it is in the half that {does}: measure more of them (questions in --new, "
                "or items with --set)"
            )


def half(session: Session, name: str, choosing: bool | None) -> dict[str, Estimate]:
    """Return the figures of a point on the half of the items that chooses, or on the other half; None: on all."""

    def own(records: list[Record]) -> list[Record]:
        return of_half(records, choosing)

    after = read_records(session.arm_folder(name) / "items-1.jsonl")
    base, floor = own(session.base_records()), own(session.floor_records())
    return score(base, floor, own(after), session.config.evaluation.bootstrap, session.config.seed)


def _points(alphas: Sequence[float]) -> list[float]:
    wrong = [alpha for alpha in alphas if not 0 < alpha <= 1]
    if wrong:
        raise ConfigError(f"--alphas {wrong[0]:g}: a point of the path has an alpha above 0 and at most 1")
    check_distinct(alphas)
    return sorted({*map(as_printed, alphas), 1.0})


def _check_path(model: Model, base: Base) -> None:
    """Raise ConfigError if no path of weights leads to the model, or if its config makes other use of them."""
    if model.endpoint:
        raise ConfigError(f"--model {model.address}: a server does not give its weights: name the model's folder")
    reasons = [why for suite, why in model.left_out.items() if suite in ("alignment", "drift")]
    if reasons:
        raise ConfigError(f"--model {model.address}: no path of weights leads from the base to it: {reasons[0]}")
    last = model.checkpoints[-1]
    if last.kind.whole:
        WeightPath(base.folder, last.folder)
    if not last.kind.whole or base.allow_other:
        return
    there, here = (
        computes(AutoConfig.from_pretrained(folder, trust_remote_code=base.remote_code))
        for folder in (last.folder, base.folder)
    )
    if different := differences(there, here):
        raise ConfigError(
            f"--model {model.address}: its config computes something else with the same weights: {different} (in the "
            "base). The path has the model's config, so it does not begin at the base; if that is what you want, add "
            "--allow-other-base"
        )


def _measure(session: Session, model: Model, path: WeightPath, alphas: Sequence[float]) -> dict[float, str]:
    """Measure the points, or read what is on disk of them. Returns the name of each one's records."""
    names = {}
    for alpha in alphas:
        name = name_of(alpha)
        point = Checkpoint(1, model.checkpoints[-1].folder, _kind(path, alpha, session.folder / "point"))
        session.measure(dataclasses.replace(model, name=name, checkpoints=(point,)))
        names[alpha] = name
    return names


def _kind(path: WeightPath, alpha: float, near: Path) -> Kind:
    def load(folder: Path, base: Base) -> Any:
        return path.load(alpha, base, near)

    return Kind(f"alpha {alpha:g} of {path.by}", True, lambda _: True, lambda *_: {}, lambda *_: None, load)


def _remarks(session: Session, model: Model, measured: Mapping[float, str]) -> list[str]:
    """Say what a reader must know of the path: a barrier, other prompts than the base's, and what the base is."""
    found = barrier([Point(alpha, half(session, name, False)) for alpha, name in measured.items()])
    prompts = f"{model.name}: {model.remark}" if model.remark else ""
    return [*filter(None, (found, prompts)), *session.remarks()]
