"""How a model can read many prompts: padded, with a cache, after a shared start. Found by a probe, not by a list.

Recurrent layers cannot skip padding that comes after a shared start, some models keep their state elsewhere than in
transformers' cache, and some take padding for text. All of that would give other replies, and no error.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from experiments.common.errors import NotFinite
from experiments.models.prefix import Prefix, Prompts
from experiments.models.tokens import pad

NO_CHOICE = ("bos_token_id", "eos_token_id", "pad_token_id", "cache_implementation")  # fields that choose no token
NEUTRAL: tuple[Any, ...] = (None, False, True, 0, 1, [], {})
START, OWN, NEW = 12, (2, 9), 8  # tokens of the probe: a shared start, two prompts after it, a reply
SAME, SAME_BF16 = 1e-3, 0.2  # largest change by rounding, as a share of the spread of the logits (measured: 5e-6, .06)
CANNOT = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)  # what a model raises that cannot read so
WINDOW = re.compile(r"(.*_)?window(_size)?|attention_chunk_size")
_known: WeakKeyDictionary[PreTrainedModel, Reading] = WeakKeyDictionary()


@dataclass(frozen=True)
class Reading:
    """What leaves a model's predictions as they are.

    pads: padding on the left. caches: that, and a cache. shares: all that, and padding after a shared start. generates:
    the cache of the model's own `generate`; only looked at if `caches` is not so.
    """

    pads: bool
    caches: bool
    shares: bool
    generates: bool = True


@torch.no_grad()
def reading(model: PreTrainedModel) -> Reading:
    """Return how a model can read. It is tested once; call it inside `evaluating`."""
    if model not in _known:
        pads = _right(_padded, model)
        caches = pads and _right(_cached, model)
        shares = caches and _right(_shared, model)
        _known[model] = Reading(pads, caches, shares, caches or _generates(model))
    return _known[model]


def own_replies(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], most: int, ends: Sequence[int]
) -> list[list[int]]:
    """Return greedy replies to prompts of one length as the model's own `generate` writes them."""
    return [cut(row, ends) for row in _generate(model, prompts, most, ends, reading(model).generates)]


def check_finite(logits: Tensor) -> None:
    """Raise NotFinite if a row has no largest logit, as NaN gives none. Logits of -inf are tokens that never come."""
    if not torch.isfinite(logits.amax(dim=-1)).all():
        raise NotFinite


def cut(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens up to and including the first of the ends."""
    at = next((i for i, token in enumerate(tokens, start=1) if token in ends), len(tokens))
    return tokens[:at]


def exact(model: PreTrainedModel) -> bool:
    """Whether the model computes in fp32 here, so that rounding changes its logits by millionths."""
    return model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)


def windows(model: PreTrainedModel) -> dict[str, int]:
    """Return the numbers of tokens that attention looks back, by their names in the model's configuration."""
    values = model.config.get_text_config().to_dict()
    return {name: n for name, n in values.items() if WINDOW.fullmatch(name) and type(n) is int and n > 0}


def _right(read: Callable[[PreTrainedModel, list[list[int]]], Tensor], model: PreTrainedModel) -> bool:
    """Whether the logits (prompts, vocabulary) after two prompts are those of each one alone."""
    prompts = _prompts(model)
    try:
        found = read(model, prompts).float()
    except CANNOT:
        return False
    alone = [model(input_ids=_batch(model, [prompt]), use_cache=False).logits[0, -1] for prompt in prompts]
    expected = torch.stack(alone).float()
    change = (found - expected).square().mean(dim=-1).sqrt() / expected.std(dim=-1)
    return not bool((change > (SAME if exact(model) else SAME_BF16)).any())  # of a model without finite logits too


def _prompts(model: PreTrainedModel) -> list[list[int]]:
    size = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(size, (2, START + max(OWN)), generator=torch.Generator().manual_seed(0)).tolist()
    return [[*ids[0][:START], *row[START : START + own]] for row, own in zip(ids, OWN, strict=True)]


def _generates(model: PreTrainedModel) -> bool:
    """Whether the model's own `generate` writes the same with its cache as without."""
    prompts = _prompts(model)[-1:]
    ends = [int(model.config.get_text_config().vocab_size)]  # no token, so all are written
    try:
        return _generate(model, prompts, NEW, ends, True) == _generate(model, prompts, NEW, ends, False)
    except CANNOT:
        return False


def _generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], most: int, ends: Sequence[int], use_cache: bool
) -> list[list[int]]:
    ids = torch.tensor(prompts, device=model.device)
    greedy = GenerationConfig(
        max_new_tokens=most, do_sample=False, num_beams=1, repetition_penalty=1.0, eos_token_id=list(ends),
        pad_token_id=0, use_cache=use_cache,
    )  # fmt: skip
    generate: Any = model.generate  # its stub says Tensor
    with as_asked(model):
        new: Tensor = generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy, logits_processor=[_checked]
        )
    rows: list[list[int]] = new[:, ids.shape[1] :].tolist()
    return rows


@contextlib.contextmanager
def as_asked(model: PreTrainedModel) -> Iterator[None]:
    """Let `generate` follow the settings that it is given alone, inside the block.

    It would take all others from the model's generation_config.json: Qwen 2.5 has a penalty on repetition there.
    """
    holders: list[Any] = [module for module in model.modules() if "generation_config" in vars(module)]
    before = [holder.generation_config for holder in holders]
    for holder, own in zip(holders, before, strict=True):
        holder.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in NO_CHOICE})
    try:
        yield
    finally:
        for holder, own in zip(holders, before, strict=True):
            holder.generation_config = own


def choices_of(settings: Mapping[str, Any]) -> list[str]:
    """Name the settings of a generation_config.json that `as_asked` leaves out and that may change what is written."""
    idle = (*NO_CHOICE, "transformers_version", "do_sample", "temperature", "top_p", "top_k", "max_length")
    return sorted(name for name, value in settings.items() if name not in idle and value not in NEUTRAL)


def _checked(ids: Tensor, logits: Tensor) -> Tensor:
    check_finite(logits)
    return logits


def _padded(model: PreTrainedModel, prompts: list[list[int]]) -> Tensor:
    real = pad([[1] * len(prompt) for prompt in prompts], 0, left=True).to(model.device)
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    ids = _batch(model, prompts)
    logits: Tensor = model(input_ids=ids, attention_mask=real, position_ids=positions, use_cache=False).logits
    return logits[:, -1]


def _cached(model: PreTrainedModel, prompts: list[list[int]], shared: int = 0) -> Tensor:
    """Read all but the last token, swap the prompts, and read that."""
    batch = Prompts(model, [prompt[:-1] for prompt in prompts], Prefix(model, prompts[0][:shared]))
    batch.select(torch.tensor([1, 0]))
    last = torch.tensor([[prompt[-1]] for prompt in reversed(prompts)])
    return batch.read(last, torch.ones_like(last)).flip(0)


def _shared(model: PreTrainedModel, prompts: list[list[int]]) -> Tensor:
    return _cached(model, prompts, START)


def _batch(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    return pad(rows, 0, left=True).to(model.device)
