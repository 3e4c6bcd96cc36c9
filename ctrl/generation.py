"""Save the settings of generation with an expansion, and bring them back.

Trainers change where replies end, users the rest (generation_config).
"""

from __future__ import annotations

import json
import re
from typing import Any

from ctrl.errors import warn

# tokens, which trainers set (`ends` has those at which replies end), and what a pass returns
OTHERS = re.compile(r"_.*|.*token_id|transformers_version|use_cache|output_.*|return_dict.*")


def ends(model: Any) -> list[int]:
    """List the tokens at which `generate` stops: trainers add the end of turn of a chat template to those of a base."""
    known = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if known is None else [int(end) for end in (known if isinstance(known, list | tuple) else [known])]


def settings(model: Any) -> dict[str, Any]:
    """Return the other settings that are not transformers' defaults, as plain values."""
    config = getattr(model, "generation_config", None)
    given: dict[str, Any] = {} if config is None else json.loads(config.to_json_string(use_diff=True))
    return {name: value for name, value in given.items() if not OTHERS.fullmatch(name)}


def agree(model: Any, saved_ends: list[int] | None, saved: dict[str, Any] | None, named: bool) -> None:
    """Let `generate` do what it did in the saved model. None: not known, of an earlier version.

    named: the base was loaded by its name. One that the caller holds keeps its own settings, with a warning.
    """
    if getattr(model, "generation_config", None) is None:
        return
    _agree_on_ends(model, saved_ends, named)
    here = settings(model)
    other = {name: value for name, value in (saved or {}).items() if here.get(name) != value}
    if named and saved is not None and here != saved:
        defaults = type(model.generation_config)()
        gone = {name: getattr(defaults, name, None) for name in here.keys() - saved.keys()}
        model.generation_config.update(**gone, **other)
    elif other:
        warn(
            f"the model was saved with other settings of generation than this base has: {other}. "
            f"model.generation_config.update(**{other}) gives the saved model's replies",
            stacklevel=3,
        )


def _agree_on_ends(model: Any, saved: list[int] | None, named: bool) -> None:
    """Let `generate` stop at the tokens at which it did."""
    here = ends(model)
    if saved is None or set(saved) == set(here):
        return
    if named:
        model.generation_config.eos_token_id = saved or None
        return
    warn(
        f"the model was saved with generation_config.eos_token_id={saved}, this base has {here}: generate stops at "
        f"other tokens. Set model.generation_config.eos_token_id = {saved or None} to get the saved model's replies",
        stacklevel=4,
    )
