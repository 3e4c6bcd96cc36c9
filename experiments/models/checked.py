"""Load a base model and its tokenizer, and refuse what is damaged, incomplete or no causal language model."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ctrl.quantised import is_quantised
from experiments.common.errors import ModelError
from experiments.models.modes import evaluating
from experiments.models.precision import DTYPES, Precision

TOKENS = 4  # of the two rows of the probe, which differ in the last one
SAME = 1e-4  # largest change by rounding, as a share of the largest logit
SHOWN = 3  # names of tensors in a message
QUESTION, REPLY = "a question", "a reply"
GENERATION = "generation_config.json"  # transformers skips a damaged one without a word
PARTS = {  # file of a folder that is no whole model -> what the folder has
    "kept.json": "has what an arm of a run trained",
    "control_config.json": "is an expansion of Control LLM",
    "adapter_config.json": "is an adapter of PEFT",
}
CODE = "it is damaged, or a pickle of more than tensors, which could run code: it is not loaded"


def load_whole(
    name: str,
    source: str,
    remote_code: bool = False,
    dtype: str = "fp32",
    device_map: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer. Raises ModelError, which names the file or the weights.

    name: as the user wrote it. source: a folder, or a name of the Hugging Face Hub. remote_code: run Python files that
    the model brings along. dtype: of the weights, a name of DTYPES. device_map: of accelerate; None: the CPU.
    given: further arguments of `from_pretrained`.
    """
    tokenizer = load_words(name, source, remote_code)
    model = load_weights(name, source, remote_code, dtype, device_map, given)
    _check_vocabulary(name, model, tokenizer)
    return model, tokenizer


def load_words(name: str, source: str, remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer alone. Parameters and errors: see `load_whole`."""
    with _explained(name, Path(source), "tokenizer.json"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=remote_code)
    return tokenizer


def load_config(name: str, source: str, remote_code: bool = False) -> Any:
    """Load a model's config alone. Parameters and errors: see `load_whole`."""
    with _explained(name, Path(source), "config.json"):
        return AutoConfig.from_pretrained(source, trust_remote_code=remote_code)


def load_weights(
    name: str,
    source: str,
    remote_code: bool = False,
    dtype: str = "fp32",
    device_map: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Load a model alone. Parameters and errors: see `load_whole`."""
    folder = Path(source)
    _check_indexes(name, folder)
    if (folder / GENERATION).is_file():
        with _explained(name, folder, GENERATION):
            GenerationConfig.from_pretrained(folder)
    with _explained(name, folder, "config.json"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=DTYPES[dtype],
            device_map=device_map,
            trust_remote_code=remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
            **(given or {}),
        )
    model: PreTrainedModel
    model, report = loaded
    model.config.return_dict = model.config.get_text_config().return_dict = True  # a config may ask for tuples
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"base_model {name!r} is an adapter of PEFT, of which only a part would be saved: merge it "
            f"(peft.AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload().save_pretrained(FOLDER)), "
            "save its tokenizer there too, and name that folder"
        )
    _check_report(name, report)
    offloaded = [tensor for tensor, values in model.named_parameters() if values.is_meta]
    if offloaded:
        raise ModelError(
            f"base_model {name!r} does not fit on the devices of device_map {device_map}: {len(offloaded)} tensors "
            f"({_some(offloaded)}) would be read from disk or main memory in each pass. Take a smaller dtype (bf16), "
            "or more devices"
        )
    return model


def _check_indexes(name: str, folder: Path) -> None:
    """Raise ModelError if a list of weight files names some outside of the folder, which may be of another model."""
    for index in folder.glob("*.index.json") if folder.is_dir() else ():
        with suppress(OSError, ValueError, AttributeError, TypeError):  # a damaged one is named where it is loaded
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            if strange := [file for file in files if Path(file).name != file]:
                raise ModelError(f"base_model {name!r}: {index} names {strange[0]!r}, which is not in its folder")


def check_model(name: str, model: PreTrainedModel) -> None:
    """Raise ModelError for weights that are no numbers, and for logits that depend on later tokens."""
    for tensor, values in model.named_parameters():
        if not is_quantised(values) and not torch.isfinite(values.sum()):  # a sum passes NaN and infinity on
            raise ModelError(f"base_model {name!r}: {tensor} holds NaN or infinity: take other weights")
    ids = torch.arange(TOKENS).repeat(2, 1)
    ids[1, -1] += 1
    with evaluating(model, Precision("fp32")):
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    one, other = logits[:, :-1].float()
    if (one - other).abs().max() > SAME * logits.abs().max():
        raise ModelError(
            f"base_model {name!r} is no causal language model: its logits change with the tokens that follow "
            f"({type(model).__name__}): take a model that was pretrained to predict the next token"
        )


def check_template(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError for a chat template that fails, or that leaves out the question or the reply."""
    if tokenizer.chat_template is None:
        return
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": REPLY}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception as error:  # Jinja's, and those of Python in its expressions
        raise ModelError(
            f"base_model {name!r}: its chat template fails ({short_text(error)}): correct chat_template in its "
            "tokenizer"
        ) from error
    missing = [word for word in (QUESTION, REPLY) if word not in text]
    if missing:
        raise ModelError(
            f"base_model {name!r}: its chat template leaves out {' and '.join(missing)}, so all chats would be alike: "
            "correct chat_template in its tokenizer"
        )


def readable(file: Path) -> bool:
    """Whether a file of a model has the form that its name promises; only its beginning and its sizes are looked at."""
    try:
        if file.suffix == ".json":
            values = json.loads(file.read_text(encoding="utf-8"))
            return isinstance(values, dict) or (isinstance(values, list) and not file.stem.endswith("config"))
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                return True
        return file.suffix != ".bin" or zipfile.is_zipfile(file)
    except Exception:  # of JSON, UTF-8, safetensors, the file system
        return False


@contextmanager
def _explained(name: str, folder: Path, suspect: str) -> Iterator[None]:
    """Turn errors of transformers into a ModelError. suspect: the file to name if each one is readable."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(_reason(name, folder, suspect, error)) from error


def _reason(name: str, folder: Path, suspect: str, error: Exception) -> str:
    start = f"base_model {name!r}"
    if part := next((what for file, what in PARTS.items() if (folder / file).is_file()), ""):
        return (
            f"{start} {part}, no whole model with its tokenizer: write one with `control-llm export-model RUN --arm "
            "ARM --to FOLDER`, or with save_pretrained after a merge, and name its folder"
        )
    if "trust_remote_code" in str(error):
        return (
            f"{start} brings Python files of its own (auto_map in its config.json), which are not run: read them, then "
            "set trust_remote_code: true"
        )
    if "Unrecognized configuration class" in str(error):
        return f"{start} is no causal language model ({short_text(error)}): take one that predicts the next token"
    if folder.is_dir():
        if denied := next((file for file in sorted(folder.iterdir()) if not os.access(file, os.R_OK)), None):
            return f"{start}: {denied} may not be read by this user: change its mode, or ask its owner to"
        damaged = next((file for file in sorted(folder.iterdir()) if not readable(file)), None)
        if damaged or not isinstance(error, OSError):
            suspect = "config.json" if type(error).__name__.startswith("Strict") else suspect
            pickled = next(folder.glob("*.bin"), None) if short_text(error) == CODE else None
            file = damaged or pickled or folder / suspect
            correct = "" if damaged or pickled else "correct it, or "
            return f"{start}: {file} cannot be used ({short_text(error)}): {correct}{_again(folder)}"
    return (
        f"{start} could not be loaded: {short_text(error)}\n"
        "It is neither 'smollm2-135m-instruct' (shipped), nor a folder saved by save_pretrained, nor a model that "
        "Hugging Face serves to this machine. With no network, give a local folder or the shipped model."
    )


def _check_report(name: str, report: Mapping[str, Any]) -> None:
    """Raise ModelError if weights would be drawn at random or left out. report: of `from_pretrained`, without ties."""
    shapes = {key: f"{key} {tuple(stored)} instead of {tuple(own)}" for key, stored, own in report["mismatched_keys"]}
    faults = {
        "missing": sorted(set(report["missing_keys"]) - set(shapes)),
        "of another shape": sorted(shapes.values()),
        "unexpected": sorted(report["unexpected_keys"]),
    }
    found = [f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names]
    if found:
        raise ModelError(
            f"base_model {name!r}: its weights do not fit its config.json: {'; '.join(found)}. They would be random or "
            "dropped: save the model again with save_pretrained, or correct config.json"
        )


def _check_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError if text has tokens without an embedding. Special tokens of other models may have none."""
    rows = len(cast(Tensor, model.get_input_embeddings().weight))
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = sorted(i for i in tokenizer.get_vocab().values() if i >= rows and i not in special)
    if beyond:
        raise ModelError(
            f"base_model {name!r}: its tokenizer has {len(beyond)} tokens beyond the {rows} embeddings of the model "
            f"(the first is {beyond[0]}): tokenizer and model are not of one another"
        )


def _again(folder: Path) -> str:
    return f"save the model to {folder} again with save_pretrained"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def short_text(error: BaseException) -> str:
    """Return the text of an error in one line of at most 200 characters."""
    if isinstance(error, pickle.UnpicklingError) or "Weights only load failed" in str(error):
        return CODE  # torch's own text says how to load it all the same, which would run the code
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
