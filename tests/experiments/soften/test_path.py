"""The path of weights: its ends to the last bit, its middle by the formula, other tensors refused."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from experiments.common.errors import ConfigError
from experiments.measure.base import Base
from experiments.posthoc.operations import depth_shares
from experiments.soften.path import EMBEDDINGS, WeightPath
from tests.helpers.byte_level import byte_base, byte_tokenizer
from tests.helpers.measured import model_folder, resized_folder, tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("path")
    model = tiny_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return Path(model_folder(folder / "base")), Path(byte_base(folder / "model", byte_tokenizer(), model))


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def written(path: WeightPath, alpha: float, folder: Path) -> dict[str, Tensor]:
    path.write(alpha, folder)
    return tensors(folder)


@pytest.mark.parametrize("by", ["weights", "depth"])
def test_at_1_it_is_the_model_to_the_last_bit(by: Any, folders: tuple[Path, Path], tmp_path: Path) -> None:
    found, model = written(WeightPath(*folders, by), 1.0, tmp_path / "one"), tensors(folders[1])
    assert found.keys() == model.keys()
    assert all(torch.equal(found[name], model[name]) for name in model)


def test_by_weights_it_is_the_straight_line(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, model = map(tensors, folders)
    for alpha in (0.0, 0.3):
        for name, tensor in written(WeightPath(*folders), alpha, tmp_path / str(alpha)).items():
            torch.testing.assert_close(tensor, (1 - alpha) * base[name] + alpha * model[name], rtol=1e-6, atol=1e-7)


def test_by_depth_deep_layers_change_most(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """LiNeS restated: s = .25 + .75 l / (L - 1), the embedding like the first layer, what follows the layers whole."""
    base, model = map(tensors, folders)
    path = WeightPath(*folders, "depth")
    last = path.layers - 1
    assert last >= 1
    for name, tensor in written(path, 0.25, tmp_path / "depth").items():
        depth = next((i / last for i in range(last + 1) if f"layers.{i}." in name), 0.0 if "embed" in name else 1.0)
        share = 0.25 + 0.75 * depth
        torch.testing.assert_close(tensor, torch.lerp(base[name], model[name], share), rtol=1e-6, atol=1e-7)


def test_what_is_loaded_is_what_is_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = WeightPath(*folders)
    path.write(0.5, tmp_path / "half")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    loaded = path.load(0.5, Base("base", path.base), tmp_path / "point")
    assert not list(tmp_path.glob("point*"))
    for (name, one), two in zip(loaded.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.cpu(), two), name
    assert (tmp_path / "half" / "tokenizer.json").is_file()


def test_one_tensor_at_a_time_is_in_memory(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[weakref.ref[Tensor]] = []
    original = WeightPath._mixed

    def mixed(self: WeightPath, name: str, alpha: float, read: Any) -> Tensor:
        assert [one() for one in before] == [None] * len(before)
        tensor = original(self, name, alpha, read)
        before.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(WeightPath, "_mixed", mixed)
    path = WeightPath(*folders)
    assert len(written(path, 0.5, tmp_path)) == len(before) == len(path.files) > 10


def test_a_file_has_the_layout_of_the_models_own(folders: tuple[Path, Path], tmp_path: Path) -> None:
    values = {**tensors(folders[1]), "model.count": torch.tensor(3), "model.scale": torch.tensor(0.5)}
    for folder in (tmp_path / "base", tmp_path / "model"):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        save_file(values, folder / "model.safetensors", {"format": "pt", "note": "ours"})
    WeightPath(tmp_path / "base", tmp_path / "model").write(0.5, tmp_path / "half")
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "half")]
    assert same[0] == same[1]


def test_shards_and_a_base_in_one_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(folders[1]).save_pretrained(sharded, max_shard_size="20KB")
    assert (sharded / "model.safetensors.index.json").is_file()
    found = written(WeightPath(folders[0], sharded), 0.5, tmp_path / "a")
    expected = written(WeightPath(*folders), 0.5, tmp_path / "b")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    AutoModelForCausalLM.from_pretrained(tmp_path / "a")  # its index fits its files


def test_half_precision_stays_and_is_mixed_in_fp32(folders: tuple[Path, Path], tmp_path: Path) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(folders[1], dtype=torch.bfloat16).save_pretrained(half)
    base, model = tensors(folders[0]), tensors(half)
    for name, tensor in written(WeightPath(folders[0], half), 0.3, tmp_path / "out").items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, torch.lerp(base[name], model[name].float(), 0.3).bfloat16())


def test_added_rows_are_the_models_own(folders: tuple[Path, Path], tmp_path: Path) -> None:
    resized = Path(resized_folder(tmp_path / "resized"))
    model, base = tensors(resized), tensors(folders[0])
    for name, tensor in written(WeightPath(folders[0], resized), 0.5, tmp_path / "out").items():
        rows = len(base[name])
        torch.testing.assert_close(tensor[:rows], torch.lerp(base[name], model[name][:rows], 0.5))
        assert torch.equal(tensor[rows:], model[name][rows:])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("extra", r"1 tensors are not in the base, such as model\.extra"),
        ("missing", r"1 tensors are not in the model, such as model\.norm\.weight"),
        ("shape", r"model\.norm\.weight has shape \[3\], in the base \[\d+\]"),
        ("bin", r"has no model\.safetensors: soften reads weights from safetensors files alone"),
    ],
)
def test_other_tensors_are_refused(change: str, match: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    values = tensors(folders[1])
    if change == "extra":
        values["model.extra"] = torch.zeros(2)
    elif change == "missing":
        del values["model.norm.weight"]
    elif change == "shape":
        values["model.norm.weight"] = torch.zeros(3)
    (tmp_path / "config.json").write_text(json.dumps({}))
    save_file(values, tmp_path / ("model.safetensors" if change != "bin" else "other.safetensors"))
    with pytest.raises(ConfigError, match=match):
        WeightPath(folders[0], tmp_path)


def test_no_file_of_elsewhere_is_copied(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A folder of others may link to a private file. Links inside of it, and those of the Hub's cache, are as ever."""
    model, blob, private = tmp_path / "model", tmp_path / "models--a--b" / "blobs" / "4f1a", tmp_path / "private.txt"
    shutil.copytree(folders[1], model)
    for file in (blob, private):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    (model / "of_hub.json").symlink_to(blob)
    (model / "own.json").symlink_to("config.json")
    WeightPath(folders[0], model).write(0.5, tmp_path / "to")
    assert {"of_hub.json", "own.json"} <= {file.name for file in (tmp_path / "to").iterdir() if not file.is_symlink()}
    (model / "notes.txt").symlink_to(private)
    with pytest.raises(
        ConfigError, match=r"notes\.txt is a link to .*private\.txt, which is not in the model's folder"
    ):
        WeightPath(folders[0], model)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bloom", "gpt_neox", "mamba", "gemma3_text", "lfm2"])
def test_the_depth_of_each_tensor_is_that_of_the_posthoc_operation(kind: str) -> None:
    """By name alone, since there is no model: positions and norms of embeddings are before the first layer too."""
    config = AutoConfig.for_model(kind)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = depth_shares(model, 0.25)
    path: Any = WeightPath.__new__(WeightPath)
    path.__dict__.update(by="depth", files=dict.fromkeys(expected, "model.safetensors"))
    assert {name: path.share(name, 0.25) for name in expected} == pytest.approx(expected)
    outside = {name: share for name, share in expected.items() if ".0." not in name and share in (0.25, 1)}
    words = {name for name, share in outside.items() if share == 0.25}
    assert words == {
        n for n in outside if any(part in n for part in (*EMBEDDINGS, "wpe", "embed_pos", "embeddings_la"))
    }
