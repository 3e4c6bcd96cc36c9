"""Methods: how an arm trains. A method is what trains x loss terms x averaging (`method`); `tables` lists the parts."""

from experiments.methods.active import TokenPenalties, TokenPenalty, Tokens, TokenWeights
from experiments.methods.base import MethodContext
from experiments.methods.batches import Batch
from experiments.methods.method import ActiveMethod, Method
from experiments.methods.parts import PARTS
from experiments.methods.shorthands import METHODS
from experiments.methods.tables import AVERAGES, LOSS_TERMS, TUNINGS

__all__ = [
    "AVERAGES",
    "LOSS_TERMS",
    "METHODS",
    "PARTS",
    "TUNINGS",
    "ActiveMethod",
    "Batch",
    "Method",
    "MethodContext",
    "TokenPenalties",
    "TokenPenalty",
    "TokenWeights",
    "Tokens",
]
