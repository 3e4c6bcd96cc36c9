"""Handle hidden states with several streams per token, which a few architectures pass from layer to layer.

gemma3n has (streams, batch, seq, hidden), deepseek_v4 (batch, seq, streams, hidden), most have (batch, seq, hidden).
The batch is at `batch_dim`, the sequence after it. Each stream is mixed and measured as a hidden state of its own; a
token's value is the mean over its streams.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ctrl.errors import ConfigError


def batch_dims(shape: Sequence[int], batch: int, seq: int) -> list[int]:
    """List the dimensions that can be the batch: those of size batch with one of size seq after it, before hidden."""
    return [dim for dim in range(len(shape) - 2) if tuple(shape[dim : dim + 2]) == (batch, seq)]


def by_token(state: Tensor, batch_dim: int | None) -> Tensor:
    """Bring a state (..., batch, seq, ..., hidden) to (batch, seq, streams * hidden).

    Raises ConfigError if it has streams and batch_dim is None: the model was expanded where no tokens could run.
    """
    if state.dim() == 3:
        return state
    if batch_dim is None:
        raise ConfigError(
            f"hidden states have shape {tuple(state.shape)}, but which values belong to which token is unknown, since "
            "the model was expanded on device meta or sharded: expand it with its weights loaded, and then shard it"
        )
    return state.movedim((batch_dim, batch_dim + 1), (0, 1)).flatten(2)


def over_streams(per_token: Tensor, batch_dim: int | None) -> Tensor:
    """Average values per token and stream, (..., batch, seq, ...), over the streams: (batch, seq)."""
    return per_token if per_token.dim() < 3 else by_token(per_token.unsqueeze(-1), batch_dim).mean(-1)


def alpha_of_tokens(alpha: Tensor, batch_dim: int | None) -> Tensor:
    """Average alpha, (..., batch, seq, ..., 1), over the streams: (batch, seq, 1). A scalar stays as it is."""
    return over_streams(alpha.squeeze(-1), batch_dim).unsqueeze(-1) if alpha.dim() else alpha
