"""The parts that a method can be made of, by their names in the YAML: the only lists of them."""

from __future__ import annotations

from experiments.methods.adapters import Peft
from experiments.methods.averaging import Ema, Mer, Wise
from experiments.methods.base import Average, LossTerm, Tuning
from experiments.methods.distillation import LogitSwap, Muscle
from experiments.methods.losses import Ewc, Kl, L2sp
from experiments.methods.low_rank import Corda, Dora, Lora, Rslora
from experiments.methods.sparse import Mofo
from experiments.methods.token_weights import Asft, Dft, Eaft, NotReplayed, Prift, Prox, Talr
from experiments.methods.tuning import Control, Full, Half, Hybrid, Partial, Stack

TUNINGS: dict[str, type[Tuning]] = {
    "full": Full,
    "partial": Partial,
    "half": Half,
    "mofo": Mofo,
    "control": Control,
    "stack": Stack,
    "hybrid": Hybrid,
    "lora": Lora,
    "rslora": Rslora,
    "dora": Dora,
    "corda": Corda,
    "peft": Peft,
}
LOSS_TERMS: dict[str, type[LossTerm]] = {
    "kl": Kl,
    "l2sp": L2sp,
    "ewc": Ewc,
    "dft": Dft,
    "eaft": Eaft,
    "prift": Prift,
    "talr": Talr,
    "prox": Prox,
    "asft": Asft,
    "muscle": Muscle,
    "logit_swap": LogitSwap,
    "not_replayed": NotReplayed,
}
AVERAGES: dict[str, type[Average]] = {
    "ema": Ema,
    "wise": Wise,
    "mer": Mer,
}
