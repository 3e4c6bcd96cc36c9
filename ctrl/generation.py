"""Save with an expansion what trainers and users set in memory, and bring it back: settings of generation, and the
padding and classes of a classifier.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any, TypeAlias

from ctrl.errors import warn

# tokens that trainers set (`ends` has those at which replies end), and what a pass returns
OTHERS = re.compile(r"_.*|(pad|bos|eos|decoder_start)_token_id|transformers_version|use_cache|output_.*|return_dict.*")
FORCED = re.compile(r"forced_.*token_id")  # folders of earlier versions lack them

Exchange: TypeAlias = dict[str, tuple[Any, Any]]  # a value of now and another one, by the name of a setting

AS_LOADED = "_original_object_hash"  # transformers' note of settings that were read from a file


def ends(model: Any) -> list[int]:
    """List the tokens at which `generate` stops: trainers add the end of turn of a chat template to those of a base."""
    known = getattr(config_of(model), "eos_token_id", None)
    return [] if known is None else [int(end) for end in (known if isinstance(known, list | tuple) else [known])]


def settings(model: Any) -> dict[str, Any]:
    """Return the other settings that are not transformers' defaults, as plain values."""
    config = config_of(model)
    given: dict[str, Any] = {} if config is None else json.loads(config.to_json_string(use_diff=True))
    return {name: value for name, value in given.items() if not OTHERS.fullmatch(name)}


def config_of(model: Any) -> Any:
    """Return the settings with which the model generates outside of `ctrl.pretrained`; None of one that has none."""
    config, control = getattr(model, "generation_config", None), getattr(model, "control", None)
    if control is None or not control.base_settings:
        return config
    config = copy.deepcopy(config)
    _exchange(config, control.base_settings)
    return config


def to_base(model: Any) -> None:
    """Put the base's own settings back in place of those that `ctrl.load` has given an expanded model."""
    if model.control.loaded_settings:
        model.control.base_settings |= _exchange(model.generation_config, model.control.loaded_settings)


def to_expansion(model: Any) -> None:
    """Undo `to_base`."""
    if model.control.base_settings:
        _exchange(model.generation_config, model.control.base_settings)
        model.control.base_settings = {}


def keep_settings(model: Any) -> None:
    """Let an expanded model keep the settings of the saved one when its copies are taken off, as merged ones are."""
    to_expansion(model)
    model.control.loaded_settings = {}


def _exchange(config: Any, values: Exchange) -> Exchange:
    """Replace each value that is still the first one of its pair by the second, and return how to undo it.

    What was changed since, by the user or a trainer, stays.
    """
    found = {name: pair for name, pair in values.items() if getattr(config, name, None) == pair[0]}
    for name, (_, value) in found.items():
        setattr(config, name, value)
    if found:
        keep_savable(config)
    return {name: (new, old) for name, (old, new) in found.items()}


def padding(model: Any) -> int | None:
    """Return the token of padding of a classifier of sequences, which reads the last other one; None of other models.

    Trainer gives a model the one of its tokenizer.
    """
    pooled = type(model).__name__.endswith("ForSequenceClassification")
    return model.config.get_text_config().pad_token_id if pooled else None


def labels(model: Any) -> dict[str, str] | None:
    """Return the names of a classifier's classes by their index; None of other models, and of names not given."""
    if not type(model).__name__.endswith("Classification"):
        return None
    names = {str(i): str(name) for i, name in (model.config.id2label or {}).items()}
    return names if any(name != f"LABEL_{i}" for i, name in names.items()) else None


def agree(model: Any, saved: dict[str, Any], named: bool) -> None:
    """Let the model do what the saved one did. saved: of `read_config`; None of what an earlier version did not note.

    named: the base was loaded by its name. One that the caller holds keeps its own settings, with a warning.
    """
    pad, here = saved["pad"], padding(model)
    if pad is not None and pad != here:
        warn(
            f"the model was saved with config.pad_token_id={pad}, this base has {here}: it reads the last token that "
            f"is no padding, so it answers otherwise for padded rows. Set model.config.pad_token_id = {pad}",
            stacklevel=3,
        )
    if saved["labels"] is not None and saved["labels"] != labels(model):
        warn(
            f"the model was saved with the classes {saved['labels']}, this base has {model.config.id2label}: the same "
            "answer has another name. Set model.config.id2label and label2id",
            stacklevel=3,
        )
    if getattr(model, "generation_config", None) is not None:
        _agree_on_ends(model, saved["ends"], named)
        _agree_on_settings(model, saved["generation"], named)


def keep_savable(config: Any) -> None:
    """Let settings that were changed here be saved with all others as they are.

    transformers refuses to save changed ones if it calls any invalid (do_sample: false next to a temperature), but not
    those of a file: many published models have some.
    """
    if hasattr(config, AS_LOADED):
        setattr(config, AS_LOADED, hash(config))


def _give(model: Any, values: dict[str, Any]) -> None:
    """Set settings of a base that was loaded by its name, and note how to take them back."""
    config = model.generation_config
    own = {name: getattr(config, name, None) for name in values}
    config.update(**values)
    model.control.loaded_settings |= {name: (getattr(config, name, None), own[name]) for name in values}
    keep_savable(config)


def _agree_on_settings(model: Any, saved: dict[str, Any] | None, named: bool) -> None:
    """Let `generate` choose tokens as it did."""
    here = settings(model)
    if saved is None:
        return
    defaults = type(model.generation_config)()
    lacking = {name for name in here.keys() - saved.keys() if not FORCED.fullmatch(name)}
    gone = {name: getattr(defaults, name, None) for name in lacking}
    other = {**gone, **{name: value for name, value in saved.items() if here.get(name) != value}}
    if not other:
        return
    if named:
        _give(model, other)
        return
    warn(
        f"the model was saved with other settings of generation than this base has: {other}. "
        f"model.generation_config.update(**{other}) gives the saved model's replies",
        stacklevel=4,
    )


def _agree_on_ends(model: Any, saved: list[int] | None, named: bool) -> None:
    """Let `generate` stop at the tokens at which it did."""
    here = ends(model)
    if saved is None or set(saved) == set(here):
        return
    if named:
        _give(model, {"eos_token_id": saved or None})
        return
    warn(
        f"the model was saved with generation_config.eos_token_id={saved}, this base has {here}: generate stops at "
        f"other tokens. Set model.generation_config.eos_token_id = {saved or None} to get the saved model's replies",
        stacklevel=4,
    )
