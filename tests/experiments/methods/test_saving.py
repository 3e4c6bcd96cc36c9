"""Trained weights load onto the base that they are of, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.common.errors import DamagedError
from experiments.methods.saving import load_onto, save_trained
from tests.helpers.byte_level import byte_llama

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
CHANGES: dict[str, tuple[Change, str]] = {
    "other names": (lambda t: {f"x.{k}": v for k, v in t.items()}, r"of this arm and base model.* are unknown"),
    "one name more": (lambda t: t | {"x": torch.ones(2)}, r"\['x'\] are unknown"),
    "another shape": (lambda t: {k: v[:-1] for k, v in t.items()}, r"does not fit the base model .*size mismatch"),
    "nothing": (lambda t: {}, r"are missing"),
}


def save(folder: Path, whole: bool, tied: bool = False) -> Path:
    """Save a disturbed model: all of it, or one layer."""
    model = byte_llama(260, tie_word_embeddings=tied)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(whole or ".layers.1." in name)
        with torch.no_grad():
            parameter.add_(0.1)
    return save_trained(model, folder) / "model.safetensors"


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_weights_of_something_else_are_refused(tmp_path: Path, whole: bool, change: str) -> None:
    file, (apply, said) = save(tmp_path, whole), CHANGES[change]
    save_file(apply(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(DamagedError, match=said):
        load_onto(byte_llama(260), tmp_path)


def test_a_whole_model_lacks_no_tensor(tmp_path: Path) -> None:
    file = save(tmp_path, whole=True)
    save_file({k: v for k, v in load_file(file).items() if "norm" not in k}, file, metadata={"format": "pt"})
    with pytest.raises(DamagedError, match=r"input_layernorm.* are missing: bring it back, or delete the arm's folder"):
        load_onto(byte_llama(260), tmp_path)


@pytest.mark.parametrize("data", [b"", bytes(2000), b"x"], ids=["empty", "NUL", "cut"])
def test_a_file_that_is_no_safetensors(tmp_path: Path, data: bytes) -> None:
    save(tmp_path, whole=True).write_bytes(data)
    with pytest.raises(DamagedError, match=r"model\.safetensors does not fit the base model \(.*header"):
        load_onto(byte_llama(260), tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_what_was_saved_loads(tmp_path: Path, whole: bool, tied: bool) -> None:
    save(tmp_path, whole, tied)
    base = byte_llama(260, tie_word_embeddings=tied)
    before = {name: value.clone() for name, value in base.named_parameters()}
    for name, value in load_onto(base, tmp_path).named_parameters():
        torch.testing.assert_close(value, before[name] + 0.1 * (whole or ".layers.1." in name))
