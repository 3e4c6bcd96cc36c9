"""The tokenizers of models to measure: their own, or the base's, and in which words a model is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.files import read_json
from experiments.evaluation.cache import PROBE
from experiments.measure.base import Base
from experiments.measure.files import TOKENIZER, tokenizer_folder
from experiments.measure.kinds import Kind
from experiments.methods.saving import BASE as TRAINED_FROM
from experiments.models.checked import check_template
from experiments.models.template import set_template
from experiments.models.tokens import end_of_turn, prompt_ids, text_ids
from experiments.models.turns import prompt_text


def load_tokenizer(folder: Path, remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer with its chat template settled, as `load_base` does. Raises ConfigError."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"the tokenizer in {folder} could not be loaded: {error}") from error
    set_template(tokenizer)
    check_template(str(folder), tokenizer)
    return tokenizer


def own_tokenizer(kind: Kind, folder: Path, named: Path, base: Base) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a model; None if it has none and is a change of the base, whose tokenizer it has then."""
    if kind.whole and not _trained_here(folder, base):
        check_tokenizer_files(folder, named)
    place = tokenizer_folder(folder)
    return load_tokenizer(place, base.remote_code) if place else None


def _trained_here(folder: Path, base: Base) -> bool:
    """Whether an arm of this bench trained these weights from this base. Such a folder has no tokenizer of its own."""
    return read_json(folder / TRAINED_FROM).get("name") in (base.name, str(base.folder))


def check_tokenizer_files(folder: Path, named: Path) -> None:
    """Raise ConfigError for a model without a tokenizer. named: its folder as the user named it."""
    if tokenizer_folder(folder) is None:
        raise ConfigError(
            f"{named} has no tokenizer ({', '.join(TOKENIZER[:3])}): save it there, "
            "tokenizer.save_pretrained(folder), or copy the files of the base's"
        )


def asked_otherwise(own: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase, other_tokens: bool) -> str:
    """Say that a model is asked in other words or tokens than the base; nothing if its prompts are the same.

    other_tokens: its ids are others, which is said where suites are left out for it.
    """
    texts = [prompt_text(one, PROBE) if one.chat_template else "" for one in (own, base)]
    how = ""
    if texts[0] != texts[1]:
        how = "in its own chat template (the base has " + ("another)" if texts[1] else "none)")
        how = how if texts[0] else "without a chat template (the base has one)"
    elif not other_tokens and _tokens(own) != _tokens(base):
        how = "in its own tokens (the base has others)"
    return f"asked {how}: answers may change for that alone" if how else ""


def ways(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Return what decides the tokens of prompts and texts and the end of a reply, for tokenizers of one vocabulary.

    Their rules before the words may differ (digits, spaces, lower case), the start of a text (`add_bos_token`, which a
    chat template may write by itself), or which token ends a turn.
    """
    return [tokenizer.chat_template, *_tokens(tokenizer), end_of_turn(tokenizer)]


def _tokens(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [prompt_ids(tokenizer, PROBE), text_ids(tokenizer, PROBE)]
