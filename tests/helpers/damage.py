"""Damage each file of a run, study or measurement in every way, go on, and tell what was healed or refused by name.

python -m tests.helpers.damage finished interrupted cached read study measured softened    # all; an hour of CPU
python -m tests.helpers.damage study --damages cut NUL --only mlflow.json      # some
python -m tests.helpers.damage finished read --sample 40 --seed 3 --folder D   # 40 of each by chance; again: goes on

It prints the count of each outcome and every case that is a fault; exit 1: there is one. Healed: the same command
ends well with the same facts as without damage. Not read: it ends well, and only the file itself is other (`read` tries
what reads those of a run). Refused: it ends with an error whose last lines name the file and what to do. All else is a
fault: other facts, a traceback, or an error without the file's name.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import itertools
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.damaged import SUBJECTS, Subject

Damage = Callable[[Path, Path], object]  # gets the file, and the same file of another run
DAMAGES: dict[str, Damage] = {
    "cut": lambda file, _: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file, _: file.write_bytes(b""),
    "NUL": lambda file, _: file.write_bytes(bytes(file.stat().st_size)),
    "random": lambda file, _: file.write_bytes(bytes(7 * i % 256 for i in range(file.stat().st_size))),
    "missing": lambda file, _: file.unlink(),
    "of another run": lambda file, other: shutil.copyfile(other, file),
}
HEALED, REFUSED, NOT_READ = "healed", "refused by name", "not read"
NEXT_STEP = re.compile("delete|bring|--fresh|again|start|give|choose|free|mov(e|ing)|not finished", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """A damage to one file (its path below the root of a subject)."""

    subject: Subject
    file: str
    damage: str

    def __str__(self) -> str:
        return f"{self.subject.name}: {self.file}: {self.damage}"


class Roots:
    """Folders with what is to be damaged, each made once. Their facts are those of the subject that is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = {}
        self.made: set[Path] = set()

    def whole(self, subject: Subject, seed: int = 0) -> Path:
        root = self.folder / f"{subject.made_as or subject.name}-{seed}"
        if root in self.made:
            return root
        modules = root.with_suffix(".modules")  # written last: without it what is there is half made

        def work() -> int:
            code = subject.make(self.folder, root, seed)
            modules.write_text("\n".join(sys.modules))
            return code

        if not modules.is_file():
            shutil.rmtree(root, ignore_errors=True)
            said = in_child(work, root.with_suffix(".log"))
            assert said.code == 0, said.text
        have_imported(modules.read_text().split())
        gc.freeze()  # else each child looks through what it shares with this process
        self.made.add(root)
        return root

    def files(self, subject: Subject) -> list[str]:
        root = self.whole(subject)
        return [str(f.relative_to(root)) for f in sorted(root.rglob("*")) if f.is_file() and not subject.left_out(f)]

    def expected(self, subject: Subject) -> Any:
        """Return the facts of a copy that was not damaged."""
        if subject.name not in self.facts:
            outcome = self._go_on(subject, lambda root: None)
            assert outcome.code == 0, outcome.text
            self.facts[subject.name] = outcome.facts
        return self.facts[subject.name]

    def judge(self, case: Case) -> str:
        """Return HEALED, NOT_READ, REFUSED, or what is wrong."""
        other = same_file(self.whole(case.subject, 1), case.file)
        if case.damage == "of another run" and other is None:
            return "no such file in another run"
        outcome = self._go_on(case.subject, lambda root: DAMAGES[case.damage](root / case.file, other or root))
        if outcome.code == 0:
            expected = self.expected(case.subject)
            wrong = [name for name in expected if outcome.facts.get(name) != expected[name]]
            if wrong == [case.file.partition("/")[2]]:
                return NOT_READ
            return f"SILENT: other {', '.join(wrong)}" if wrong else HEALED
        error = outcome.text[-3000:]
        if "Traceback" in outcome.text or outcome.code not in (1, 2):
            return f"TRACEBACK (exit {outcome.code}): {error[-900:]}"
        named = Path(case.file).name in error or Path(case.file).parent.name in error
        return REFUSED if named and NEXT_STEP.search(error) else f"UNCLEAR: {error[-600:]}"

    def _go_on(self, subject: Subject, damage: Callable[[Path], object]) -> Outcome:
        """Copy what is whole to where it was made (its path is in its files), damage it, and do the same again."""
        whole = self.whole(subject)
        with tempfile.TemporaryDirectory(dir=self.folder) as other:
            root = Path(shutil.copytree(whole, Path(other) / "root", symlinks=True))
            damage(root)
            facts = Path(other) / "facts.json"

            def work() -> int:
                code = subject.again(self.folder, root)
                if not code:
                    facts.write_text(json.dumps(subject.facts(self.folder, root)))
                return code

            outcome = in_child(work, Path(other) / "log.txt")
            outcome.facts = json.loads(facts.read_text()) if facts.is_file() else {}
            return outcome


@dataclass
class Outcome:
    code: int
    text: str
    facts: Any = None


def in_child(work: Callable[[], int], log: Path) -> Outcome:
    """Do the work in a forked child, which has all imports, and return its exit code and what it printed."""
    sys.stdout.flush()
    if not (pid := os.fork()):
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        try:
            os._exit(work())
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    _, status = os.waitpid(pid, 0)
    return Outcome(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"))


def have_imported(modules: Iterable[str]) -> None:
    """Import what a child has imported, so that the next ones need not: that takes most of their time."""
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def same_file(root: Path, name: str) -> Path | None:
    """Find a file of another run by its path, in which ids and digests differ."""
    pattern = re.sub(r"[0-9a-f]{8,}", "*", name)
    return next(iter(sorted(root.glob(pattern))), None)


def rotated(roots: Roots, subject: Subject, each: int = 1) -> list[Case]:
    """Take one damage for every so many files, so that all damages are tried on about as many files."""
    files = roots.files(subject)[::each]
    return [Case(subject, file, damage) for file, damage in zip(files, itertools.cycle(DAMAGES), strict=False)]


def every(roots: Roots, subject: Subject, damages: Iterable[str], only: str) -> list[Case]:
    return [Case(subject, file, damage) for file in roots.files(subject) if only in file for damage in damages]


def check(
    roots: Roots,
    cases: Sequence[Case],
    processes: int = 1,
    say: Any = lambda text: None,
    done: Path | None = None,
) -> dict[str, str]:
    """Return what is wrong, by case. Prints the count of each outcome with `say`.

    done: a file that gets each outcome; cases whose outcome it has are not judged again.
    """
    known = dict(map(json.loads, done.read_text().splitlines())) if done and done.is_file() else {}
    if not all(str(case) in known for case in cases):
        roots.expected(cases[0].subject)  # once, before the threads
        roots.whole(cases[0].subject, 1)
    outcomes, faults = Counter[str](), {}

    def judged(case: Case) -> str:
        if str(case) not in known:
            outcome = roots.judge(case)
            if done:
                with done.open("a") as file:
                    file.write(json.dumps([str(case), outcome]) + "\n")
            return outcome
        return str(known[str(case)])

    with ThreadPoolExecutor(processes) as pool:
        for case, outcome in zip(cases, pool.map(judged, cases), strict=True):
            outcomes[outcome.partition(":")[0].partition(" (")[0]] += 1
            if outcome[:5].isupper():  # see `Roots.judge`
                faults[str(case)] = outcome
                say(f"{case}: {outcome}")
    say(f"{cases[0].subject.name}: " + ", ".join(f"{count} {what}" for what, count in outcomes.most_common()))
    return faults


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("subjects", nargs="+", choices=SUBJECTS, metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--damages", nargs="+", choices=DAMAGES, default=list(DAMAGES), metavar="DAMAGE")
    parser.add_argument("--only", default="", help="files with this text in their path")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--sample", type=int, metavar="CASES", help="of each subject, drawn by chance (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--folder", type=Path, help="is kept; the same command goes on there after it was stopped")
    args = parser.parse_args(argv)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    faults: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="damage-") as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        roots = Roots(folder)
        for name in args.subjects:
            began = time.monotonic()
            cases = every(roots, SUBJECTS[name], args.damages, args.only)
            random.Random(args.seed).shuffle(cases)
            cases = cases[: args.sample]
            faults |= check(roots, cases, args.processes, lambda text: print(text, flush=True), folder / "done.jsonl")
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
