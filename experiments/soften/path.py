"""The straight line from a base's weights to a model's, tensor by tensor from their files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from experiments.common.errors import ConfigError
from experiments.common.files import leads_away, part_folder, read_json
from experiments.measure.base import Base
from experiments.measure.files import CONFIG, INDEXES, WEIGHTS, shards
from experiments.posthoc.operations import BEFORE

By = Literal["weights", "depth"]
LAYER = re.compile(r"\.(\d+)\.")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", ".embeddings.weight")
HEAD = "lm_head.weight"
COPIED = (".json", ".jinja", ".txt", ".model", ".py")  # files of a model besides its weights
TRAINING = ("trainer_state.json",)
NO_PATH = "no path of weights leads there"


@dataclass(frozen=True)
class WeightPath:
    """Weights at a point between base and model: W(alpha) = W0 + s (W - W0), in fp32, then in the model's own dtype.

    by `weights`: s = alpha everywhere (WiSE-FT, arXiv 2109.01903). by `depth`: s = alpha + (1 - alpha) l / (L - 1) in
    layer l of L, alpha before the first (embeddings), 1 after the last layer (LiNeS, arXiv 2410.17146): what is near
    the input, and general, changes less. alpha 1 is the model itself, bit for bit. base, model: folders with
    safetensors files. Raises ConfigError if they have other tensors, or if files that would be copied are elsewhere.
    """

    base: Path
    model: Path
    by: By = "weights"

    def __post_init__(self) -> None:
        if away := next((file for file in self._copied if leads_away(file, self.model)), None):
            raise ConfigError(
                f"--model: {away} is a link to {away.resolve()}, which is not in the model's folder and would be "
                f"copied with it: if it belongs to the model, put the file there (cp -rL {self.model} NEW), else "
                "delete the link"
            )
        shapes = {name: self._shape(self.model, name) for name in self.files}
        missing = [name for name in shapes if self._origin(name) is None]
        left = [name for name in self._base_files if name not in shapes and name != HEAD]
        if missing or left:
            where, names = ("base", missing) if missing else ("model", left)
            raise ConfigError(f"--model: {len(names)} tensors are not in the {where}, such as {names[0]}: {NO_PATH}")
        for name, shape in shapes.items():
            there = self._shape(self.base, str(self._origin(name)))
            if shape[1:] != there[1:] or (shape[:1] < there[:1]):
                raise ConfigError(f"--model: {name} has shape {list(shape)}, in the base {list(there)}: {NO_PATH}")

    @cached_property
    def files(self) -> dict[str, str]:
        """File name of each tensor of the model."""
        return _files(self.model)

    @cached_property
    def _base_files(self) -> dict[str, str]:
        return _files(self.base)

    @cached_property
    def layers(self) -> int:
        return 1 + max((int(found[1]) for name in self.files if (found := LAYER.search(name))), default=0)

    @property
    def _copied(self) -> list[Path]:
        """The files of the model besides its weights."""
        inside = (file for file in sorted(self.model.iterdir()) if file.suffix in COPIED)
        return [file for file in inside if file.name not in TRAINING and not file.name.startswith(".")]

    def share(self, name: str, alpha: float) -> float:
        """Return s of a tensor."""
        if self.by == "weights":
            return alpha
        if found := LAYER.search(name):
            return alpha + (1 - alpha) * int(found[1]) / max(1, self.layers - 1)
        return alpha if BEFORE.search(name) else 1.0

    def load(self, alpha: float, base: Base, near: Path) -> PreTrainedModel:
        """Load the model at a point, as `write` writes it, in the way in which the base is loaded.

        near: a path next to which it is written for that. A killed process leaves it there, and the next one removes
        it; a folder of the system would keep one model for each kill.
        """
        with part_folder(near) as folder:
            self.write(alpha, folder)
            return base.load(folder)

    def write(self, alpha: float, folder: Path) -> None:
        """Write the model at a point: weights, config, tokenizer. One tensor at a time is in memory."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in self._copied:
            shutil.copy(file, folder / file.name)
        for file_name in sorted(set(self.files.values())):
            self._write_file(file_name, alpha, folder / file_name)

    def _write_file(self, file_name: str, alpha: float, target: Path) -> None:
        """Write a safetensors file with the header of the model's own, and each tensor in its place."""
        with (self.model / file_name).open("rb") as own, target.open("wb") as file, self._opened() as read:
            size = own.read(8)
            header = own.read(int.from_bytes(size, "little"))
            file.write(size + header)
            places = {
                name: value["data_offsets"] for name, value in json.loads(header).items() if name != "__metadata__"
            }
            for name in sorted(places, key=places.__getitem__):
                file.write(self._mixed(name, alpha, read).reshape(-1).view(torch.uint8).numpy().data)

    def _mixed(self, name: str, alpha: float, read: Any) -> Tensor:
        own: Tensor = read(self.model, name)
        share = self.share(name, alpha)
        if share == 1 or not own.is_floating_point():
            return own
        start: Tensor = read(self.base, str(self._origin(name)))
        rows = slice(len(start)) if start.dim() else ...  # rows that were added are the model's own
        mixed = own.clone()
        mixed[rows] = torch.lerp(start.float(), own[rows].float(), share).to(own.dtype)
        return mixed

    def _origin(self, name: str) -> str | None:
        """Return the name in the base's files: its own, or of a head that the base shares with its embedding."""
        if name in self._base_files:
            return name
        if name != HEAD or not read_json(self.base / CONFIG).get("tie_word_embeddings", True):
            return None
        return next((other for other in self._base_files if other.endswith(EMBEDDINGS)), None)

    def _shape(self, folder: Path, name: str) -> tuple[int, ...]:
        files = self.files if folder == self.model else self._base_files
        with safe_open(folder / files[name], framework="pt") as tensors:
            return tuple(tensors.get_slice(name).get_shape())

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Yield a function (folder, name) -> tensor that keeps the files open that it has opened."""
        with ExitStack() as stack:
            handles: dict[Path, Any] = {}

            def read(folder: Path, name: str) -> Tensor:
                file = folder / (self.files if folder == self.model else self._base_files)[name]
                if file not in handles:
                    handles[file] = stack.enter_context(safe_open(file, framework="pt"))
                tensor: Tensor = handles[file].get_tensor(name)
                return tensor

            yield read


def _files(folder: Path) -> dict[str, str]:
    """Return the file of each tensor. Raises ConfigError if the weights are not in safetensors files."""
    index, single = folder / INDEXES[0], folder / WEIGHTS[0]
    if index.is_file():
        return shards(index)
    if not single.is_file():
        raise ConfigError(
            f"{folder} has no {WEIGHTS[0]}: soften reads weights from safetensors files alone. Save the model "
            "again with a current transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    with safe_open(single, framework="pt") as tensors:
        return dict.fromkeys(tensors.keys(), single.name)
