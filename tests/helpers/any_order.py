"""Call what ctrl offers in random orders: whatever came before, an operation that keeps the model keeps its outputs.

python -m tests.helpers.any_order 500 --steps 8 --seed 3    # 500 orders; prints each that fails; exit 1 if one does

Each order draws a family, a type of the base and a config. The truth is an untouched copy of the base, and the outputs
of the expanded model before the operation. A refusal (ConfigError) is right too, and is counted by its operation.
"""

from __future__ import annotations

import argparse
import copy
import io
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import ctrl
from ctrl.config import field_choices
from tests.helpers.families import FAMILIES, build, labelled, left_padded, perturb

BATCH = labelled(left_padded())
REAL = BATCH["attention_mask"].bool()
FP32 = 1e-4  # logits that are equal but for the order of sums


class Outputs(NamedTuple):
    """What a model returns for `BATCH`: logits of the real tokens (tokens, vocabulary), loss, divergence."""

    logits: Tensor
    loss: float
    divergence: float | None


class Order:
    """One model, and the operations that happened to it. A method whose name begins with `do_` is an operation."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.family, half = self.random.choice(list(FAMILIES)), self.random.random() < 1 / 3
        self.base = _half(build(self.family)) if half else build(self.family)
        self.base.set_attn_implementation("eager")  # for the divergence of attention
        self.tolerance = 1.0 if half else FP32
        self.config, self.model = self._expanded()
        self.done: list[str] = [f"{self.family} {self.base.dtype} {self.config}"]
        self.refused: Counter[str] = Counter()
        self.do_move()

    def run(self, steps: int) -> None:
        """Do so many random operations. Raises AssertionError where one breaks its promise."""
        operations = [name for name in dir(self) if name.startswith("do_")]
        for _ in range(steps):
            self.done.append(self.random.choice(operations))
            try:
                getattr(self, self.done[-1])()
            except ctrl.ConfigError:
                self.refused[self.done[-1]] += 1
                self._equal(self.now, self.model)

    # what changes the model

    def do_move(self) -> None:
        with torch.no_grad():
            perturb(self.model, self.random.randrange(1000), size=0.05)
        self.now = outputs(self.model)

    def do_train(self) -> None:
        model = self.model.train()
        frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        model(**BATCH, use_cache=False).loss.backward()
        optimizer.step()
        model.zero_grad()
        model.train(self.random.random() < 0.5)
        moved = [name for name, p in model.named_parameters() if name in frozen and not torch.equal(p, frozen[name])]
        assert not moved
        self.now = outputs(model)

    # what keeps it: the model goes on as what came back

    def do_save_and_load(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            loaded = ctrl.load(self._base(), ctrl.save(self.model, folder))
        assert _trained(loaded) == _trained(self.model)
        self._goes_on(loaded)

    def do_state_dict(self) -> None:
        other = ctrl.expand(self._base(), self.config)
        other.load_state_dict(self.model.state_dict())
        self._goes_on(other)

    def do_deepcopy(self) -> None:
        other = copy.deepcopy(self.model)
        with torch.no_grad():
            perturb(other)
        self._equal(self.now, self.model)
        self._goes_on(copy.deepcopy(self.model))

    def do_pickle(self) -> None:
        buffer = io.BytesIO()
        torch.save(self.model, buffer)
        buffer.seek(0)
        self._goes_on(torch.load(buffer, weights_only=False))

    def do_swap(self) -> None:
        _, other = self._expanded()
        with tempfile.TemporaryDirectory() as folder:
            former = ctrl.swap(self.model, ctrl.save(other, folder))
        assert former is not None
        if self.random.random() < 0.5:
            self._equal(outputs(self.base), ctrl.unload(self.model), rows=2)
        ctrl.swap(self.model, former)
        self._goes_on(self.model)

    # what makes another one of it, or shows it as another for a while

    def do_unload(self) -> None:
        plain = ctrl.unload(copy.deepcopy(self.model))
        assert type(plain) is type(self.base)
        self._equal(outputs(self.base), plain)

    def do_pretrained(self) -> None:
        with ctrl.pretrained(self.model):
            self._equal(outputs(self.base), self.model)

    def do_reference(self) -> None:
        self._equal(outputs(self.base), ctrl.reference(self.model))
        self._equal(self.now, self.model)

    def do_at_alpha(self) -> None:
        with ctrl.at_alpha(self.model, self.random.choice([0.0, 0.5, 1.0])):
            self._equal(outputs(self.model), copy.deepcopy(self.model))
        self._equal(self.now, self.model)

    def do_merge_back(self) -> None:
        merged = ctrl.merge_back(self.model)
        assert type(merged) is type(self.base)
        found = outputs(merged)
        if self.config.structure == "stack":
            self._equal(self.now, merged, self.tolerance, rows=2)
        with tempfile.TemporaryDirectory() as folder:
            merged.save_pretrained(folder)
            again = AutoModelForCausalLM.from_pretrained(folder, dtype=merged.dtype, attn_implementation="eager")
        self._equal(found, again.eval())
        self._equal(self.now, self.model)

    def do_publish(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            ctrl.export_published(self.model, folder)
            published = ctrl.load_published(folder).eval()
        published.set_attn_implementation("eager")
        self._equal(self.now, published, self.tolerance, rows=1)  # the layout holds other divergences

    def do_diagnose(self) -> None:
        with ctrl.diagnostics(self.model):
            self._equal(self.now, self.model, rows=2)  # with a weight of 0 it is measured here alone
        inputs = {name: value for name, value in BATCH.items() if name != "labels"}
        ctrl.merge_gap(self.model, ctrl.merge_back(self.model), [inputs])
        self._equal(self.now, self.model)

    def do_collect(self) -> None:
        """The model's own loss is the LM loss and what is collected."""
        whole = self.model.train()(**BATCH, use_cache=False).loss
        with ctrl.collect_divergence(self.model) as collected:
            loss = self.model(**BATCH, use_cache=False).loss
        if self.config.divergence_weight and self.config.structure != "stack":
            torch.testing.assert_close(loss + collected.weighted(BATCH["labels"]), whole, rtol=1e-4, atol=1e-4)
        self._equal(self.now, self.model.eval())

    def do_checkpoint(self) -> None:
        plain = _gradients(self.model)
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        checkpointed = _gradients(self.model)
        self.model.gradient_checkpointing_disable()
        self.model.disable_input_require_grads()  # hooks that no model can be pickled with
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-4)
        self._equal(self.now, self.model)

    def do_generate(self) -> None:
        inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
        with_cache, without = (
            self.model.eval().generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=cache)
            for cache in (True, False)
        )
        assert self.base.dtype != torch.float32 or torch.equal(with_cache, without)

    # parts

    def _base(self) -> PreTrainedModel:
        return copy.deepcopy(self.base)

    def _expanded(self) -> tuple[ctrl.ControlConfig, PreTrainedModel]:
        """Draw configs until the family takes one."""
        while True:
            config = _config(self.random)
            try:
                return config, ctrl.expand(self._base(), config)
            except ctrl.ConfigError:
                pass

    def _goes_on(self, model: Any) -> None:
        self._equal(self.now, model)
        self.model = model

    def _equal(self, expected: Outputs, model: Any, tolerance: float = 0.0, rows: int = 3) -> None:
        """The first `rows` of logits, loss and divergence are those expected: bit for bit without a tolerance."""
        found = outputs(model)
        assert rows < 3 or (expected.divergence is None) == (found.divergence is None)
        pairs = [(a, b) for a, b in zip(found[:rows], expected[:rows], strict=True) if a is not None and b is not None]
        for here, there in pairs:
            torch.testing.assert_close(here, there, rtol=tolerance, atol=tolerance)


def outputs(model: Any) -> Outputs:
    """Run the model in eval mode, and leave its mode as it was."""
    training = model.training
    with torch.no_grad():
        out = model.eval()(**BATCH, use_cache=False)
    model.train(training)
    divergence = getattr(out, "divergence", None)
    return Outputs(out.logits.float()[REAL], float(out.loss), None if divergence is None else float(divergence))


def failures(seeds: range, steps: int) -> Iterator[tuple[str, Counter[str]]]:
    """Run one order for each seed; yield what failed in it ("" if nothing did), and what was refused."""
    for seed in seeds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            order = Order(seed)
            try:
                order.run(steps)
            except Exception as error:  # a crash is a fault too
                yield f"seed {seed}: {type(error).__name__}: {error}\n  after {order.done}", order.refused
            else:
                yield "", order.refused


def _config(draw: random.Random) -> ctrl.ControlConfig:
    values: dict[str, Any] = {name: draw.choice(names) for name, names in field_choices().items()}
    values |= {
        "layers": draw.choice([1, 2, 4, (0,), (-1,), (1, 3)]),
        "alpha_start": draw.choice([0.3, 0.5, 0.9]),
        "divergence_weight": draw.choice([0.0, 0.1, 1.0]),
        "norm_mix": draw.choice([0.0, 0.0, 0.2, "learned"]) if values["structure"] != "stack" else 0.0,
        "expanded": values["expanded"] if values["structure"] == "concat" else "full",
    }
    switches = ("scale_by_alpha", "detach_alpha", "detach_pretrained", "checkpoint_pretrained")
    return ctrl.ControlConfig(**values | {name: draw.random() < 0.3 for name in switches})


def _half(model: Any) -> Any:
    """Convert the weights to bf16, as `from_pretrained` would: buffers stay as they are."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        buffer.data = buffers[name]
    return model


def _trained(model: nn.Module) -> set[tuple[str, torch.dtype]]:
    return {(name, p.dtype) for name, p in model.named_parameters() if p.requires_grad}


def _gradients(model: Any) -> dict[str, Tensor]:
    model.train().zero_grad()
    model(**BATCH, use_cache=False).loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.eval().zero_grad()
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("orders", type=int)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    failed, refused = 0, Counter[str]()
    for text, some in failures(range(given.seed, given.seed + given.orders), given.steps):
        failed, refused = failed + bool(text), refused + some
        if text:
            print(text, flush=True)
    print(f"{given.orders} orders of {given.steps} operations: {failed} failed; refused: {dict(refused)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
