"""Methods: what trains and how. One engine and the same data serve all; the table is the only list of them."""

from experiments.methods.averaging import Ema, Mer, Wise
from experiments.methods.base import Batch, Method, Setting
from experiments.methods.penalties import Ewc, Kl, L2sp
from experiments.methods.tuning import Control, Corda, Full, Hybrid, Lora, Partial, Rslora, Stack

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "partial": Partial,
    "control": Control,
    "stack": Stack,
    "hybrid": Hybrid,
    "lora": Lora,
    "rslora": Rslora,
    "corda": Corda,
    "kl": Kl,
    "l2sp": L2sp,
    "ewc": Ewc,
    "ema": Ema,
    "wise": Wise,
    "mer": Mer,
}

__all__ = ["METHODS", "Batch", "Method", "Setting"]
