"""Control LLM (arXiv 2501.10979): train a pretrained model further without making it forget.

model = ctrl.expand(model, ctrl.ControlConfig(layers=8))   # add trainable copies of 8 layers, freeze the rest
Trainer(model, ...).train()                                # the loss contains the divergence
ctrl.save(model, "my-expansion")                           # write only the trained tensors
"""

from ctrl.collect import attach, collect_divergence
from ctrl.config import ControlConfig
from ctrl.describe import describe
from ctrl.diagnostics import diagnostics
from ctrl.errors import CheckpointError, ConfigError
from ctrl.gap import MergeGap, merge_gap
from ctrl.merge import merge_back
from ctrl.merge_many import merge_models
from ctrl.model import expand
from ctrl.published import export_published, load_published
from ctrl.reference import reference
from ctrl.saving import load, save
from ctrl.swapping import swap, unload
from ctrl.switches import at_alpha, pretrained

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ControlConfig",
    "MergeGap",
    "at_alpha",
    "attach",
    "collect_divergence",
    "describe",
    "diagnostics",
    "expand",
    "export_published",
    "load",
    "load_published",
    "merge_back",
    "merge_gap",
    "merge_models",
    "pretrained",
    "reference",
    "save",
    "swap",
    "unload",
]
