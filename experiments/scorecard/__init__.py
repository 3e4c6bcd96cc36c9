"""The forgetting scorecard: figures with 95 % intervals from the item records of the base and of tuned models.

figures: the table of all figures. card: those of one checkpoint, from its sample. floor: flips of the base against
itself. seeds: several training seeds. trajectory: retention at matched gain, area, hypervolume, stability gap. stream:
a sequence of tasks. pairwise: which arms differ. bootstrap and inference: the statistics that they share.
"""

from experiments.scorecard.bootstrap import resample
from experiments.scorecard.card import headline_gain, scorecard
from experiments.scorecard.floor import aa_floor
from experiments.scorecard.inference import forgetting_bound, holm, mcnemar_p, non_inferior, paired_error, wilson
from experiments.scorecard.pairing import pair_records
from experiments.scorecard.pairwise import SignificantPairs, significant_pairs
from experiments.scorecard.seeds import drawn_over_seeds, mean_card, mean_estimate, over_seeds
from experiments.scorecard.stream import stream, stream_figures, stream_matrix
from experiments.scorecard.trajectory import envelope_area, gained, hypervolume, matched_retention, stability_gap

__all__ = [
    "SignificantPairs",
    "aa_floor",
    "drawn_over_seeds",
    "envelope_area",
    "forgetting_bound",
    "gained",
    "headline_gain",
    "holm",
    "hypervolume",
    "matched_retention",
    "mcnemar_p",
    "mean_card",
    "mean_estimate",
    "non_inferior",
    "over_seeds",
    "pair_records",
    "paired_error",
    "resample",
    "scorecard",
    "significant_pairs",
    "stability_gap",
    "stream",
    "stream_figures",
    "stream_matrix",
    "wilson",
]
