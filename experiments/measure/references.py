"""What the base of a training computed, kept on disk: once a whole model has trained, nobody computes it again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiments.common.hashing import file_digest
from experiments.evaluation.evaluate import Suites
from experiments.evaluation.suite import DrawnSuite, PreparedSuite


@dataclass(frozen=True)
class References:
    """What suites compare models with, as files below the folder `base` of a training's measurements.

    files: digests by name, as they were noted.
    """

    folder: Path
    files: Mapping[str, str] = field(default_factory=dict)

    def place(self, suite: DrawnSuite) -> Path:
        return self.folder / "base" / suite.name

    def cleared(self, suites: Suites) -> References:
        """Delete those of an earlier training, whose base may be another one."""
        for suite in suites.suites.values():
            shutil.rmtree(self.place(suite), ignore_errors=True)
        return self

    def digests(self, suites: Suites) -> dict[str, str]:
        """Return the digests of the files by their names below `base`."""
        places = [self.place(suite) for suite in suites.suites.values()]
        files = [file for place in places for file in sorted(place.glob("*")) if file.suffix != ".lock"]
        return {str(file.relative_to(self.folder / "base")): file_digest(file) for file in files}

    def lost(self, suites: Suites) -> list[str]:
        """Return the suites that compare with the base and whose files are gone or others, or were never written."""
        here = self.digests(suites)
        whole = {Path(name).parts[0] for name, digest in self.files.items() if here.get(name) == digest}
        return [name for name, one in suites.suites.items() if not isinstance(one, PreparedSuite) and name not in whole]
