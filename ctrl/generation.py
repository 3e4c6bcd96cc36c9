"""Save with an expansion what trainers and users set in memory, and bring it back: settings of generation, and the
padding of a classifier.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ctrl.errors import warn

# tokens, which trainers set (`ends` has those at which replies end), and what a pass returns
OTHERS = re.compile(r"_.*|.*token_id|transformers_version|use_cache|output_.*|return_dict.*")

AS_LOADED = "_original_object_hash"  # transformers' note of settings that were read from a file


def ends(model: Any) -> list[int]:
    """List the tokens at which `generate` stops: trainers add the end of turn of a chat template to those of a base."""
    known = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if known is None else [int(end) for end in (known if isinstance(known, list | tuple) else [known])]


def settings(model: Any) -> dict[str, Any]:
    """Return the other settings that are not transformers' defaults, as plain values."""
    config = getattr(model, "generation_config", None)
    given: dict[str, Any] = {} if config is None else json.loads(config.to_json_string(use_diff=True))
    return {name: value for name, value in given.items() if not OTHERS.fullmatch(name)}


def padding(model: Any) -> int | None:
    """Return the token of padding of a classifier of sequences, which reads the last other one; None of other models.

    Trainer gives a model the one of its tokenizer.
    """
    pooled = type(model).__name__.endswith("ForSequenceClassification")
    return model.config.get_text_config().pad_token_id if pooled else None


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


def _agree_on_settings(model: Any, saved: dict[str, Any] | None, named: bool) -> None:
    """Let `generate` choose tokens as it did."""
    here = settings(model)
    if saved is None or here == saved:
        return
    defaults = type(model.generation_config)()
    gone = {name: getattr(defaults, name, None) for name in here.keys() - saved.keys()}
    other = {**gone, **{name: value for name, value in saved.items() if here.get(name) != value}}
    if named:
        model.generation_config.update(**other)
        keep_savable(model.generation_config)
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
        model.generation_config.eos_token_id = saved or None
        keep_savable(model.generation_config)
        return
    warn(
        f"the model was saved with generation_config.eos_token_id={saved}, this base has {here}: generate stops at "
        f"other tokens. Set model.generation_config.eos_token_id = {saved or None} to get the saved model's replies",
        stacklevel=4,
    )
