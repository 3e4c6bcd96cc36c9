"""Choose the colour of an arm: one colour for each method, a lighter shade for a lower learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experiments.common.hashing import sha256

PALETTE = (  # seaborn's "colorblind"
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9",
)  # fmt: skip
METHODS = ("full", "partial", "control", "lora", "stack", "hybrid", "half", "mofo", "dora", "kl")  # one colour each
LOW, HIGH = -5.0, -2.0  # log10 of the learning rates with the lightest and the full colour
LIGHTEST = 0.45  # share of the colour in the lightest shade; the rest is white
UNKNOWN = "#949494"  # of a run whose method is not known, such as samples of lm_eval


def arm_colour(method: str, rate: float) -> str:
    """Return `#rrggbb`. A method that has no colour of its own gets one by its name, always the same."""
    place = METHODS.index(method) if method in METHODS else int(sha256(method)[:8], 16) % len(PALETTE)
    return _shade(PALETTE[place], rate)


def line_colours(arms: Sequence[tuple[str, str, float]]) -> list[str]:
    """Return a colour for each arm of a picture with lines. arms: name, method (empty: not known), learning rate.

    It is `arm_colour`, unless several arms are all of one method: then that says nothing, and the hue tells the arm.
    """
    names = list(dict.fromkeys(name for name, _, _ in arms))
    methods = {method for _, method, _ in arms}
    if len(methods) > 1 or (len(names) == 1 and "" not in methods):
        return [arm_colour(method, rate) if method else UNKNOWN for _, method, rate in arms]
    several = len({rate for _, _, rate in arms}) > 1
    hues = [PALETTE[names.index(name) % len(PALETTE)] for name, _, _ in arms]
    return [_shade(hue, rate) if several else hue for hue, (_, _, rate) in zip(hues, arms, strict=True)]


def _shade(colour: str, rate: float) -> str:
    """Mix a colour with white, the more the lower the learning rate."""
    height = (math.log10(rate) - LOW) / (HIGH - LOW) if rate > 0 else 0.0
    share = LIGHTEST + (1 - LIGHTEST) * min(1.0, max(0.0, height))
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * part + (1 - share) * 255):02x}" for part in parts)
