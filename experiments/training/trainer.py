"""transformers' Trainer as every arm uses it: the data's order, the method's terms of the loss, each part logged."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, Trainer

from ctrl.control_model import ControlModel
from experiments.common.errors import DamagedError
from experiments.methods import ActiveMethod
from experiments.methods.batches import micro_batch_fraction, read_by
from experiments.models.head import only_label_logits
from experiments.training.config import TrainingConfig
from experiments.training.groups import split_groups
from experiments.training.layers import LayerFigures
from experiments.training.lm_loss import ModelLoss, lm_loss
from experiments.training.meter import Meter, real_tokens
from experiments.training.muon import NAME, MuonAdamW
from experiments.training.passes import ReadPasses, StepPasses
from experiments.training.schedules import SCHEDULES


class ArmFailed(RuntimeError):
    """An arm cannot go on (NaN loss); its records stay, and the other arms run."""


class ArmTrainer(Trainer):
    """Trainer that keeps the data's order, weighs tokens, adds the penalty, stops at a NaN and logs the loss's parts.

    Logged: `loss` (what trains), `lm_loss` (mean of -log p over the labelled tokens), `weighted_lm_loss` (with the
    method's token weights, if it has any), `divergence`, `penalty`, `aux_loss` (what the model adds itself).
    """

    def __init__(self, *args: Any, method: ActiveMethod, training: TrainingConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.method, self.training_config = method, training
        self.parts: dict[str, Tensor] = {}
        self.layers = LayerFigures(self.model)
        if self.is_fsdp_enabled:  # fp32 shards under autocast, as in one process; FSDP2's own policy rounds logits too
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = None
        with self.accelerator.autocast():
            hooks = method.token_weights, method.method.reads_pass, method.token_penalties
            self.lm_loss = lm_loss(self.model, method.method.reads_logits, *hooks)
        self.meter, self.passes = Meter(), StepPasses()
        self.add_callback(self.meter)
        self.add_callback(ReadPasses(self.end_passes))

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]  # the order is the dataset's, for every arm

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        made = self.optimizer is None
        if made and self.training_config.arguments.get("optim") == NAME:
            self.optimizer = self._muon()
        optimizer = super().create_optimizer(*args, **kwargs)
        if made:
            split_groups(optimizer, self.model, self.training_config.rates)
            self.method.method.hook(optimizer)
        return optimizer

    def _muon(self) -> MuonAdamW:
        """Build the optimizer that transformers does not have, with its choice of what decays."""
        model: Any = self.model
        args = self.args
        decayed, betas = set(self.get_decay_parameter_names(model)), (args.adam_beta1, args.adam_beta2)
        return MuonAdamW(model, decayed, args.learning_rate, args.weight_decay, betas, args.adam_epsilon)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            schedule = SCHEDULES[self.training_config.schedule]
            chosen: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = schedule(chosen, self.training_config)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with own_names(self.accelerator.unwrap_model(self.model, keep_torch_compile=False)):
            super()._save(*args, **kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise DamagedError for tensors of a checkpoint that the model does not have: it would go on without them."""
        if strange := load_result.unexpected_keys:
            raise DamagedError(
                f"the checkpoint in {self.args.output_dir} has tensors that are not of this model ({strange[0]}, "
                f"{len(strange)} in all): delete that folder, and the same command trains the arm from its start"
            )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        tokens = real_tokens(inputs)
        marked = only_label_logits(inputs)
        batch = read_by(self.model, marked)
        noted = self.method.begin_pass(self.model, marked)
        # accelerate wraps a model's forward in autocast, but not under FSDP2
        autocast = self.accelerator.autocast if self.is_fsdp_enabled else nullcontext
        with autocast(), self.layers.noting(tokens), self.lm_loss(noted) as computed:
            loss, out = super().compute_loss(
                model, batch, return_outputs=True, num_items_in_batch=num_items_in_batch, **kwargs
            )
        total = num_items_in_batch if self.model_accepts_loss_kwargs else None
        penalty = self.method.penalty(self.model, marked, out, total)
        scale = 1 if total is None else self.accelerator.num_processes  # DDP and FSDP average, but these parts add up
        added = once_a_pass(loss / scale, computed, out)
        if added is not None and total is not None:  # once a step, however it is cut
            share = micro_batch_fraction(marked, total)
            loss, added = loss - scale * (1 - share) * added, share * added
        self._note(loss / scale, computed, out, penalty, added, total)
        if penalty is not None:
            loss = loss + scale * penalty
        self.passes.note(loss.detach(), tokens)
        return (loss, out) if return_outputs else loss

    def end_passes(self) -> None:
        """Count the tokens of a step whose passes are done. Raises ArmFailed, in all processes, if a loss is broken."""
        passes, self.passes = self.passes, StepPasses()
        broken, tokens = self._over_processes(passes.counts(self.args.device), "sum").tolist()
        self.meter.tokens += tokens
        if broken:  # in all processes, whichever it was
            own = passes.broken()
            found = "not finite in another process" if own is None else own
            raise ArmFailed(
                f"loss became {found} at step {self.state.global_step + 1}: lower the learning rate "
                f"({self.args.learning_rate:g}) or raise warmup_steps ({self.args.warmup_steps})"
            )

    def _note(
        self,
        loss: Tensor,
        computed: ModelLoss,
        out: Any,
        penalty: Tensor | None,
        added: Tensor | None,
        total: Any,
    ) -> None:
        """Add this micro-batch's parts to the step's: parts divided by the step's tokens add up, means are averaged."""
        divergence, inside = getattr(out, "divergence", None), computed.penalty  # in the loss already
        trained = loss if divergence is None else out.lm_loss
        trained = trained if added is None or computed.tokens is None else computed.tokens
        if inside is not None:
            trained, penalty = trained - inside, inside if penalty is None else inside + penalty
        plain = computed.plain
        lm = {"lm_loss": trained} if plain is None else {"lm_loss": plain, "weighted_lm_loss": trained}
        parts = {**lm, "divergence": divergence, "penalty": penalty, "aux_loss": added}
        weight = 1.0 if total is not None else 1 / self.args.gradient_accumulation_steps
        for name, value in parts.items():
            if value is not None:
                self.parts[name] = self.parts.get(name, 0.0) + weight * value.detach().float()

    def _over_processes(self, values: Tensor, how: str) -> Tensor:
        """Sum or average the values over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        reduced: Tensor = self.accelerator.reduce(values.to(self.args.device), how)
        return reduced

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            how = "sum" if self.model_accepts_loss_kwargs else "mean"
            parts = self._over_processes(torch.stack(list(self.parts.values())), how).tolist()
            layers = self.layers.take(lambda sums: self._over_processes(sums, "sum"))
            logs = {**logs, **dict(zip(self.parts, parts, strict=True)), **layers, **self.meter.rates()}
            self.parts = {}
        super().log(logs, *args, **kwargs)


@contextmanager
def own_names(model: Any) -> Iterator[None]:
    """Let a plain model be saved by the names of its own tensors inside the block.

    transformers writes those of the Hub (experts one by one, another prefix), and Trainer does not read them back: it
    would go on with the base's weights, without a word.
    """
    if not isinstance(model, PreTrainedModel) or isinstance(model, ControlModel):
        yield
        return
    model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.save_pretrained


def once_a_pass(loss: Tensor, computed: ModelLoss, out: Any) -> Tensor | None:
    """Return what a model adds to the loss of its tokens in each pass, such as for the balance of experts, or None."""
    if computed.tokens is None or getattr(out, "aux_loss", None) is None:
        return None
    divergence = getattr(out, "divergence", None)
    added: Tensor = (loss if divergence is None else out.lm_loss) - computed.tokens
    return added
