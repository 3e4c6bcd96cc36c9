"""Keep the attention weights of an expanded layer while it runs, for the attention divergence.

Hooks keep them for the thread that runs the layer, never on a module: several threads may run one model.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ctrl.errors import ConfigError

DROPOUT = re.compile(r"att(ention|n)_.*drop.*")  # fields of configs


class _OfThread(threading.local):
    """Each thread sees its own value."""

    rows: dict[nn.Module, Tensor | None] | None = None  # of the layer that runs; None if no layer keeps any


_thread = _OfThread()


def with_rows(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `run`, in which `keep_rows` and `rows_of` work. The rows, which hold the graph of the pass, are dropped."""
    before, _thread.rows = _thread.rows, {}
    try:
        return run(*args, **kwargs)
    finally:
        _thread.rows = before


def keep_rows(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook of an attention module: keep its weights (batch, heads, seq, keys)."""
    if _thread.rows is not None:
        _thread.rows[module] = output[1] if isinstance(output, tuple) and len(output) > 1 else None


def rows_of(branch: nn.Module) -> Tensor:
    """Return the attention weights kept in one branch: a layer without its copy, or a copy.

    Raises RuntimeError if the attention returned none.
    """
    for name, module in branch.named_modules():
        rows = (_thread.rows or {}).get(module)
        if rows is not None and not name.startswith("expanded."):
            return rows
    raise RuntimeError(
        f"divergence='attention' needs attention weights, but those of {type(branch).__name__} are None: call "
        "model.set_attn_implementation('eager')"
    )


def check_attention(config: Any) -> None:
    """Raise ConfigError if the attention of a model with this config returns no weights, or those after a dropout."""
    if config._attn_implementation != "eager":
        raise ConfigError(
            f"divergence='attention' needs attention weights, but {config._attn_implementation!r} attention does "
            "not return them: load the model with attn_implementation='eager'"
        )
    text = vars(config.get_text_config(decoder=True))
    for name in filter(DROPOUT.fullmatch, text):
        if text[name]:
            raise ConfigError(
                f"divergence='attention' compares attention weights, but {name}={text[name]!r} drops some of them at "
                f"random in training, other ones in each branch: load the model with {name}=0.0"
            )
