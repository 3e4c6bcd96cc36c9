"""One figure of the scorecard: how it is computed, called, written and read."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.records import Estimate, Record
from experiments.scorecard.bootstrap import Array
from experiments.scorecard.sample import Sample

Places = tuple[int, int, int]  # decimals of values below .1, below 1, and from 1 on
RATE: Places = (2, 2, 2)
FINE: Places = (3, 3, 3)
NATS: Places = (3, 2, 1)
SHARE = "share"
Bounds = tuple[float, float]  # least and largest value
RATES: Bounds = (0.0, 1.0)
CHANGE: Bounds = (-1.0, 1.0)  # of a rate
ABOVE_ZERO: Bounds = (0.0, math.inf)
PER_TOKEN = "nats per token"


@dataclass(frozen=True)
class Figure:
    """Everything about one number of the scorecard; a row of `figures.FIGURES`.

    suite: the measurement that it needs. title: its name in tables and pictures. unit: added to the value in a
    sentence, but for shares. better: which direction is better, None if neither is. unchanged: its value for the base
    model itself. bounds: values that it cannot pass, and so its interval over seeds neither.
    places, signed: how it is written. tables: where it is shown: as the run's `gain`, in the `run` table,
    among its `further` figures, in a comparison (`compare`), or for the `base` model. sign_test: whether it is a share
    of right answers or of flips, whose difference between two arms is tested exactly too (`pairwise.paired_p`).

    How `card.scorecard` gets it, if it does; the other figures are computed by the function of their suite.
    draw: its value in each resample. members: the same by member of a family, whose name ends in the word `family` in
    place of the member's name. units: value and weight of each text or reply whose weighted mean it is, by which two
    arms are compared too (`units.half_means`). trials: the number of questions, for Wilson's interval in place of the
    bootstrap's. closed: value and interval at once, by a closed formula.
    """

    name: str
    suite: str
    title: str
    meaning: str
    formula: str
    better: Literal["higher", "lower"] | None = None
    unit: str = SHARE
    places: Places = RATE
    signed: bool = False
    unchanged: float | None = None
    bounds: Bounds = (-math.inf, math.inf)
    tables: Collection[str] = ()
    sign_test: bool = False
    family: str = ""
    draw: Callable[[Sample], Array] | None = None
    members: Callable[[Sample], Mapping[str, Array]] | None = None
    units: Callable[[Sample], Sequence[tuple[Record, float, float]]] | None = None
    trials: Callable[[Sample], int] | None = None
    closed: Callable[[Sample], Estimate] | None = None

    @property
    def axis(self) -> str:
        """Title and meaning in one line, for an axis or a panel."""
        return f"{self.title}: {self.meaning.partition(';')[0]}"

    @property
    def labelled(self) -> str:
        """The title with its unit, but for a share: `KL, nats per token`."""
        bare = self.title.removesuffix(", nats")
        return f"{bare}, {self.unit}" if self.unit not in ("", SHARE, "p") else self.title

    @property
    def decades(self) -> bool:
        """Whether its values are often far apart, some ten times as large as others: those that begin at 0."""
        return self.bounds == ABOVE_ZERO and self.unit == PER_TOKEN

    def beyond(self, sign: str, limit: float) -> str:
        """Say that `figure sign limit` holds for all values, or for none; an empty text if it is a limit."""
        least, most = self.bounds
        at_least = sign[0] == ">"
        always = limit <= least if at_least else limit >= most
        never = limit > most if at_least else limit < least
        if not (always or never):
            return ""
        percent = f"; for {limit:g} % write {limit / 100:g}" if self.unit == SHARE and abs(limit) >= 1 else ""
        bound = f"at least {least:g}" if limit <= least else f"at most {most:g}"
        return f"it is {bound}, so this {'always' if always else 'never'} holds{percent}"

    @property
    def prefix(self) -> str:
        """The name without the family: the names of its members begin with it."""
        return self.name.removesuffix(self.family)

    def names(self, members: Mapping[str, Sequence[str]]) -> list[str]:
        """List its name, or for a family one name for each member. members: by family."""
        return [self.prefix + member for member in members[self.family]] if self.family else [self.name]

    def drawn(self, sample: Sample) -> dict[str, Array]:
        """Draw its values in each resample, by name; none if it is not drawn. Raises NotMeasured."""
        if self.members:
            return {self.prefix + member: values for member, values in self.members(sample).items()}
        return {self.name: self.draw(sample)} if self.draw else {}
