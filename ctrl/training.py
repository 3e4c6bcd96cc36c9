"""Look at what a training pass trains: whether any copy does, and whether the divergence has a gradient."""

from __future__ import annotations

import sys
from typing import Any

import torch

from ctrl.errors import ConfigError, warn
from ctrl.initial import warn_of_reference
from ctrl.layer import ADDED, expanded_layers
from ctrl.optimizers import watch_optimizers
from ctrl.passes import ForwardPass
from ctrl.post_norms import starting_norm
from ctrl.precision import HALF
from ctrl.sharded import sharded
from ctrl.structure import dropout_in, head_parameters

SEARCHED = 8  # training passes without a mask: to look at tokens is to wait for a GPU


def warn_of_what_trains(model: Any) -> None:
    """Warn in the first pass of a training of what would not train as it is meant, and watch the optimizer.

    Of copies that do not train, weights that a reference shares, half types and dropout.

    PEFT's adapters on top have a warning of their own.
    """
    model.control.looked = True
    _look_at_trainer_above(model)
    if not model.control.watched:
        model.control.watched = True
        watch_optimizers(model)
    copies = (p for layer in expanded_layers(model) for p in layer.expanded.parameters())
    if "peft_config" not in vars(model) and not any(p.requires_grad for p in copies):
        model.control.say(
            "a training pass, but no copy trains: all their parameters are frozen (PEFT's prompt tuning and "
            "prepare_model_for_kbit_training do that). Call the latter before ctrl.expand, or unfreeze the copies",
            stacklevel=5,
        )
    frozen = [(layer, name, p) for layer in expanded_layers(model) for name, p in layer.named_parameters()]
    moving = [f"layer {one.index}, {name}" for one, name, p in frozen if p.requires_grad and not name.startswith(ADDED)]
    if moving and "peft_config" not in vars(model):
        model.control.say(
            f"{len(moving)} weights of the pretrained layers next to copies train too (first: {moving[0]}), so the "
            "model is not kept to its base: the divergence and ctrl.pretrained use the layers as they are now. "
            "model.requires_grad_() after ctrl.expand does that: unfreeze other parts by name",
            stacklevel=5,
        )
    _warn_of_half_types(model)
    _warn_of_dropout(model)
    _warn_of_norms(model)
    _warn_of_head(model)
    references = filter(None, (made() for made in model.control.references))
    shared = {id(p) for made in references for p in made.parameters()}
    if moving := [name for name, p in model.named_parameters() if p.requires_grad and id(p) in shared]:
        model.control.say(
            f"{moving[0]} trains, and the model of ctrl.reference shares it, so the reference changes too: call "
            "ctrl.reference after you unfreeze",
            stacklevel=5,
        )


def warn_of_unmarked_padding(model: Any, current: ForwardPass) -> None:
    """Warn once of rows that end in padding which nothing marks: the divergence would count it as real tokens.

    Seen by two equal tokens without labels at the end of a row, or three at its start, in the first passes.
    """
    control, labels, ids = model.control, current.labels, current.ids
    if torch.compiler.is_compiling():  # to look is to break the graph
        return
    if current.marks is not None or labels is None or not control.adds or control.unmasked >= SEARCHED:
        return
    if type(ids) is not torch.Tensor or ids.dim() != 2 or ids.shape != labels.shape:  # fake tensors have no values
        return
    control.unmasked += 1
    ends = [(labels[:, part], ids[:, part]) for part in (slice(-2, None), slice(3))]
    alike = [(own == -100).all(1) & (some == some[:, :1]).all(1).to(own.device) for own, some in ends]
    padded = int((alike[0] | alike[1]).sum()) if ids.shape[1] > 2 else 0
    if padded and control.config.divergence_tokens == "real":
        control.unmasked = SEARCHED
        warn(
            f"{padded} of {len(ids)} rows begin or end in equal tokens without a label, which look like padding, and "
            "the model got no attention_mask: the divergence counts them as real tokens. Put an attention_mask (0 for "
            "padding) into the rows, as tokenizer.pad does, or expand with divergence_tokens='labels'",
            stacklevel=5,
        )


def _warn_of_half_types(model: Any) -> None:
    """Warn of weights that train in a half type: copies do so if the config says base, or if something rounded them."""
    if "peft_config" in vars(model) or sharded(model):  # FSDP shows what it has gathered in the type of the pass
        return
    trains = {name: p for name, p in model.named_parameters() if p.requires_grad and p.dtype in HALF}
    chosen = ADDED if model.control.config.copies_dtype == "base" else ()
    if half := [name for name in trains if not any(f".{part}" in name for part in chosen)]:
        model.control.say(
            f"{len(half)} weights train in {trains[half[0]].dtype} (first: {half[0]}), in which most steps are lost at "
            "rates of 1e-5: they are smaller than the distance to the next number. Copies are in fp32 unless model.to("
            "dtype), or the state dict of a save, has rounded them. To train other parts load the base in fp32, or "
            "give them a larger rate. An optimizer with fp32 weights of its own (DeepSpeed's) loses nothing",
            stacklevel=6,
        )


def _warn_of_dropout(model: Any) -> None:
    """Warn of noise in layers that have a divergence, which is then not 0 for two equal branches."""
    config = model.control.config
    compared = [layer for layer in expanded_layers(model) if layer.interpolation is not None]
    if config.divergence != "none" and config.divergence_weight > 0 and (found := dropout_in(compared)):
        model.control.say(
            f"{found} in the expanded layers: each branch draws its own, so part of the divergence is that noise, from "
            "the first step on. Load the base with dropout 0 (attention_dropout=0.0, or the names that its config has)",
            stacklevel=6,
        )


def _warn_of_norms(model: Any) -> None:
    """Warn of stacked copies that start at a norm, see `ctrl.post_norms`."""
    stacked = [] if sharded(model) else [layer.expanded for layer in expanded_layers(model) if layer.kind == "stack"]
    if name := next(filter(None, map(starting_norm, stacked)), ""):
        model.control.say(
            f"these layers end in a norm ({name}), so their stacked copies start with a weight at which it returns 0, "
            "and learn by this weight first: more slowly than stacked copies of other models do at the same rate. Give "
            "them a larger one (1e-3, say), or use structure='concat'",
            stacklevel=5,
        )


def _warn_of_head(model: Any) -> None:
    """Warn of a classifier's head that trains but is not new, and of new parts on top of a language model that do not.

    from_pretrained notes what it found in the files.
    """
    heads = head_parameters(model).items()
    if new := _new_and_frozen(model):
        model.control.say(
            f"{len(new)} parameters on top of the decoder (first: {new[0]}) were in no file of the base, so they have "
            "random values, and ctrl.expand has frozen them: they do not train. To train them with the copies call "
            f"model.{new[0].partition('.')[0]}.requires_grad_(True) after ctrl.expand, which ctrl.save then writes too",
            stacklevel=5,
        )
    if kept := [name for name, p in heads if p.requires_grad and _in_files(p)]:
        model.control.say(
            f"the head ({kept[0]}) was loaded with the base, and trains with the copies as a new one does: "
            "inside ctrl.pretrained it is as trained, so the model is not the base there. To keep the base's head "
            f"call model.{kept[0].partition('.')[0]}.requires_grad_(False) after ctrl.expand",
            stacklevel=5,
        )


def _in_files(parameter: Any) -> bool:
    return getattr(parameter, "_is_hf_initialized", False)


def _new_and_frozen(model: Any) -> list[str]:
    """List the parameters that `from_pretrained` did not find, of a head of one's own; the LM head may be resized."""
    known = [*model.base_model.parameters(), *getattr(model.get_output_embeddings(), "parameters", list)()]
    below = {id(p) for p in known}
    names = [n for n, p in model.named_parameters() if id(p) not in below and not p.requires_grad and not _in_files(p)]
    return names if any(map(_in_files, known)) else []


def refuse_options(trainer: Any) -> None:
    """Raise ConfigError for a trainer (TRL's) that gives the model's parameters to a model without its copies.

    It copies them into a reference, one by one, or samples with vLLM.
    """
    if getattr(getattr(trainer, "args", None), "use_vllm", False) is True:
        raise ConfigError(
            "use_vllm=True samples with vLLM, which has no expanded layers: the replies would be those of the base, "
            "not of the model that trains. Set use_vllm=False"
        )
    syncs = getattr(getattr(trainer, "args", None), "sync_ref_model", False) is True
    if syncs and not _alike(getattr(trainer, "model", None), getattr(trainer, "ref_model", None)):
        raise ConfigError(
            "sync_ref_model=True writes the model's parameters into the reference's one by one, and an expanded model "
            "has more of them than its base: frozen weights would be overwritten. Set sync_ref_model=False, or give "
            "ref_model a copy.deepcopy of the expanded model"
        )


def _alike(model: Any, reference: Any) -> bool:
    """Whether two models have the same parameters, as a copy.deepcopy of an expanded model has."""
    if not isinstance(model, torch.nn.Module) or not isinstance(reference, torch.nn.Module):
        return False
    shapes = [[parameter.shape for parameter in one.parameters()] for one in (model, reference)]
    return shapes[0] == shapes[1]


def _look_at_trainer_above(model: Any) -> None:
    """Look at the trainer that runs this pass, as `ctrl.attach` does: it may not be attached."""
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        refuse_options(trainer := frame.f_locals.get("self"))
        warn_of_reference(model, trainer, stacklevel=6)


def check_gradients(model: Any, *passes: ForwardPass) -> None:
    """Raise RuntimeError if reentrant checkpointing, of one layer or all, has dropped a divergence's gradient."""
    if not torch.is_grad_enabled() or not model.control.adds:  # then a log alone has measured it
        return
    layers = {layer.index: layer for layer in expanded_layers(model)}
    for index, term in ((i, term) for one in passes for i, term in (one.divergences or {}).items()):
        if not term.requires_grad and any(p.requires_grad for p in layers[index].expanded.parameters()):
            raise RuntimeError(
                f"the divergence of layer {index} has no gradient: reentrant gradient checkpointing drops it. Call "
                "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False}), and give "
                "torch's checkpoint and its wrappers use_reentrant=False"
            )
