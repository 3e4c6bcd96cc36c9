"""A compact contract for every architecture: its expansion is right in each point, or it is refused with a reason."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import ctrl
from ctrl.errors import ConfigError
from ctrl.layer import expanded_layers
from tests.helpers.architectures import NOT_RUN, build
from tests.helpers.families import perturb

# other layers in each, since the layers of one model differ
CONFIGS = {
    "concat": ctrl.ControlConfig(layers=(1, 2)),
    "stack": ctrl.ControlConfig(layers=(1, -1), structure="stack"),
    "dlerp": ctrl.ControlConfig(layers=(0, -1), interpolation="dlerp", divergence="cosine"),
}
# part of a refusal -> why, in the table
REASONS = {
    "stacks of": "no stack of layers with cache slots",
    "gets its cache slot as an argument": "layers get their cache slot as an argument",
    "reads another layer's keys and values": "layers read the keys of another layer",
    "returns a second value": "layers pass a second value on",
    "uses a cache of its own": "a cache of its own",
    "gets hidden states of shape": "more positions than tokens",
    "reversible layer": "reversible layers",
    "projection with a known name": "output projections have other names",
    "changes its input": "a layer of zeros is not the identity",
    "builds its layers by their index": "layers are built by their index",
    "cannot be built with": "the deeper config is not valid",
}
IDS = torch.arange(2, 26).reshape(2, 12)
MASK = torch.ones_like(IDS)
MASK[1, :3] = 0
Batch = dict[str, Tensor]


class Wrong(Exception):
    """A point of the contract that does not hold."""


@dataclass
class Base:
    """A base model and what it does. cache_gap: see `cache_gap`, infinite if the base cannot use a cache."""

    model: PreTrainedModel
    inputs: Batch
    logits: Tensor
    cache_gap: float

    @classmethod
    def of(cls, name: str) -> Base:
        """Build and run the model. Raises what it raises."""
        model = build(name)
        inputs = _usable(model)
        _loss(model, inputs)
        try:
            gap = cache_gap(model)
        except Exception:
            gap = float("inf")
        return cls(model, inputs, logits(model, inputs), gap)


def verdicts(name: str, kinds: Iterable[str] = CONFIGS) -> dict[str, str]:
    """Return a verdict for each of the kinds of CONFIGS.

    It is `right`, `right; merge_back refused: why`, `refused: why`, `WRONG: what` or `not run`. The last is for a
    base that cannot be built small or does not run on text.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            base = Base.of(name)
        except Exception as error:
            return dict.fromkeys(kinds, f"not run: {NOT_RUN.get(name, type(error).__name__)}")
        return {kind: _verdict(base, kind) for kind in kinds}


def _verdict(base: Base, kind: str) -> str:
    try:
        return _contract(base, kind)
    except Exception as error:
        return f"WRONG: {type(error).__name__}: {' '.join(str(error).split())}"


def _contract(base: Base, kind: str) -> str:
    plain = copy.deepcopy(base.model)
    before = _traits(plain)
    try:
        model = ctrl.expand(plain, CONFIGS[kind])
    except ConfigError as error:
        if _traits(plain) != before:
            raise Wrong("refused, but changed") from error
        return f"refused: {_reason(error)}"
    _start(model, base)
    _training(model, base)
    perturb(model)
    _copies(model, base, kind)
    _cache(model, base)
    return "right" + _merging(model, base, kind)


def _start(model: PreTrainedModel, base: Base) -> None:
    _equal(logits(model, base.inputs), base.logits, "start")


def _training(model: PreTrainedModel, base: Base) -> None:
    """One step reaches all that trains and nothing else; without the copies the model is the base."""
    loss = _loss(model.train(), base.inputs)
    loss.backward()
    model.eval()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if idle := [name for name, p in trained.items() if p.grad is None]:
        raise Wrong(f"no gradient for {len(idle)} of {len(trained)}: {idle[0]}")
    if not torch.isfinite(loss):
        raise Wrong("loss is not finite")
    torch.optim.AdamW(trained.values(), lr=1e-3).step()
    state = model.state_dict()
    for name, value in base.model.state_dict().items():
        _equal(state[name], value, f"training: {name}")
    with ctrl.pretrained(model):
        _equal(logits(model, base.inputs), base.logits, "pretrained()")


def _copies(model: PreTrainedModel, base: Base, kind: str) -> None:
    """Copies matter, their divergence is the mean by hand, and they come back from a folder."""
    changed = logits(model, base.inputs)
    if (changed - base.logits).abs().max() < 1e-3:
        raise Wrong("copies do not matter")
    if kind != "stack":
        _divergence(model, base.inputs)
    if kind == "concat":
        with tempfile.TemporaryDirectory() as folder:
            ctrl.save(model, folder)
            loaded = ctrl.load(copy.deepcopy(base.model), folder)
        _equal(logits(loaded, base.inputs), changed, "save and load")


def _divergence(model: PreTrainedModel, inputs: Batch) -> None:
    pairs: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.interpolation.register_forward_pre_hook(lambda _, args: pairs.append(args[:2]))  # type: ignore[union-attr]
        for layer in expanded_layers(model)
    ]
    with torch.no_grad():
        found = model(**inputs, labels=inputs["input_ids"], use_cache=False).divergence
    for hook in hooks:
        hook.remove()
    real = inputs.get("attention_mask", torch.ones_like(IDS)).bool()
    cosine = model.control.config.divergence == "cosine"
    means = [_distance(*(_of_tokens(state, real) for state in pair), cosine) for pair in pairs]
    if not torch.allclose(found, torch.stack(means).mean(), rtol=1e-3, atol=1e-5):
        raise Wrong(f"divergence {found:.4g}, by hand {torch.stack(means).mean():.4g}")


def _of_tokens(state: Tensor, real: Tensor) -> Tensor:
    """The states of real tokens: (tokens, streams, hidden), from any order of (batch, seq) and streams."""
    batch = next(d for d in range(state.dim()) if state.shape[d : d + 2] == IDS.shape)
    return state.movedim((batch, batch + 1), (0, 1))[real]


def _distance(a: Tensor, b: Tensor, cosine: bool) -> Tensor:
    return (1 - torch.cosine_similarity(a, b, dim=-1)).mean() if cosine else (a - b).square().mean()


def _cache(model: PreTrainedModel, base: Base) -> None:
    if base.cache_gap < float("inf") and (gap := cache_gap(model)) > max(1e-3, 3 * base.cache_gap):
        raise Wrong(f"logits with a cache are off by {gap:.2g}, the base's by {base.cache_gap:.2g}")


def _merging(model: PreTrainedModel, base: Base, kind: str) -> str:
    """Merging is exact at both ends; a stacked model becomes a plain one with the same logits."""
    if kind == "dlerp":
        return ""
    try:
        want = base.logits if kind == "concat" else logits(model, base.inputs)
        _equal(logits(ctrl.merge_back(model, 0.0), base.inputs), want, "merge at 0")
        if kind == "concat":
            with ctrl.at_alpha(model, 1.0):
                want = logits(model, base.inputs)
            _equal(logits(ctrl.merge_back(model, 1.0), base.inputs), want, "merge at 1")
    except ConfigError as error:
        return f"; merge_back refused: {_reason(error)}"
    return ""


def _reason(error: ConfigError) -> str:
    found = [short for part, short in REASONS.items() if part in str(error)]
    if not found:
        raise Wrong(f"a refusal that is not in REASONS: {error}")
    return found[0]


def _traits(model: PreTrainedModel) -> list[Any]:
    return [*map(type, model.modules()), *((name, p.requires_grad) for name, p in model.named_parameters())]


def _usable(model: PreTrainedModel) -> Batch:
    """Ids, with a mask of padding in front if the model can use one."""
    both: Batch = {"input_ids": IDS, "attention_mask": MASK}
    try:
        if torch.isfinite(logits(model, both)).all():
            return both
    except Exception:
        pass
    return {"input_ids": IDS}


@torch.no_grad()
def logits(model: PreTrainedModel, inputs: Batch) -> Tensor:
    """Logits of real tokens from one pass without a cache."""
    found = model(**inputs, use_cache=False).logits
    return found[inputs["attention_mask"].bool()] if "attention_mask" in inputs else found


def _loss(model: PreTrainedModel, inputs: Batch) -> Tensor:
    labels = inputs["input_ids"]
    if "attention_mask" in inputs:
        labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    with torch.random.fork_rng():
        return model(**inputs, labels=labels, use_cache=False).loss


@torch.no_grad()
def cache_gap(model: PreTrainedModel) -> float:
    """Distance of logits with a cache (9 tokens, then 3 one by one) from those without."""
    ids = IDS[:1]
    whole = model(input_ids=ids, use_cache=False).logits
    out = model(input_ids=ids[:, :9], use_cache=True)
    steps = [out.logits]
    for t in range(9, ids.shape[1]):
        out = model(input_ids=ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        steps.append(out.logits)
    return float((torch.cat(steps, dim=1) - whole).abs().max())


def _equal(found: Tensor, want: Tensor, what: str) -> None:
    if not torch.equal(found, want):
        raise Wrong(f"{what} is off by {(found - want).abs().max():.2g}")
