"""Published checkpoints: what we write we read back, one made by hand means what it says, damage is named."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import ctrl
from ctrl.interpolation import INTERPOLATIONS
from tests.helpers.published import by_hand
from tests.helpers.tiny_llama import IDS, disturbed, tiny

STRATEGIES = [name for name, cls in INTERPOLATIONS.items() if cls.published is not None]


@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
@pytest.mark.parametrize("interpolation", STRATEGIES)
@pytest.mark.parametrize("shard", ["5GB", "60KB"])
@pytest.mark.slow
def test_round_trip(tmp_path: Path, structure: str, interpolation: str, shard: str) -> None:
    model = disturbed(structure=structure, interpolation=interpolation, alpha="learned", alpha_start=0.3)
    ctrl.export_published(model, tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "60KB")
    again = ctrl.load_published(tmp_path).eval()
    # plerp and proj store P = I + offset, which rounds the offset
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-6)
    if interpolation not in ("plerp", "proj"):
        assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert again.control.config.alpha == "learned"


@pytest.mark.parametrize("mix", [0.25, "learned"])
def test_relaxed_norms_round_trip(tmp_path: Path, mix: float | str) -> None:
    model = disturbed(norm_mix=mix)
    ctrl.export_published(model, tmp_path)
    assert torch.equal(ctrl.load_published(tmp_path).eval()(IDS).logits, model(IDS).logits)
    factors = [name for name in load_file(tmp_path / "model.safetensors") if "norm.interpolation_factor" in name]
    assert len(factors) == (4 if mix == "learned" else 0)
    assert all(name.split(".")[3] == "expanded_layer" for name in factors)
    plain = disturbed()
    assert not torch.equal(plain(IDS).logits, model(IDS).logits)  # the norms do differ


def test_a_checkpoint_written_by_hand(tmp_path: Path) -> None:
    tensors = by_hand(tmp_path)
    model = ctrl.load_published(tmp_path).eval()
    assert [row.layer for row in ctrl.describe(model)] == [1, 3]
    assert ctrl.describe(model)[0].alpha == pytest.approx(1 / (1 + math.exp(-0.7)))
    with ctrl.pretrained(model):
        assert torch.equal(model(IDS).logits, tiny().eval()(IDS).logits)
    expanded = ctrl.layer.expanded_layers(model)[1].expanded
    assert torch.equal(expanded.mlp.up_proj.weight, tensors["model.layers.3.expanded_layer.mlp.up_proj.weight"])
    for base in (tiny(), "base-folder"):
        if isinstance(base, str):
            tiny().save_pretrained(tmp_path / base)
            base = str(tmp_path / base)
        assert torch.equal(ctrl.load_published(tmp_path, base=base).eval()(IDS).logits, model(IDS).logits)


def test_learned_norms_without_their_factors_are_refused(tmp_path: Path) -> None:
    by_hand(tmp_path, interpolation_norm_alpha=-1)
    with pytest.raises(
        ctrl.CheckpointError, match=r"4 missing \(first: model\.layers\.1\.expanded_layer\.\w+\.interpolation_factor\)"
    ):
        ctrl.load_published(tmp_path)


def test_null_factor_means_the_expanded_branch_alone(tmp_path: Path) -> None:
    by_hand(tmp_path, interpolation_factor=None)
    contradicted = ctrl.load_published(tmp_path).eval()
    assert [row.alpha for row in ctrl.describe(contradicted)] == [1.0, 1.0]  # the file's theta .7 is not used
    tensors = load_file(tmp_path / "model.safetensors")
    without = {n: t for n, t in tensors.items() if not n.endswith("interpolation_factor")}
    save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = ctrl.load_published(tmp_path).eval()
    assert [row.alpha for row in ctrl.describe(model)] == [1.0, 1.0]
    torch.testing.assert_close(ctrl.merge_back(model)(IDS).logits, model(IDS).logits)
    assert torch.equal(contradicted(IDS).logits, model(IDS).logits)


def test_a_stack_checkpoint_is_a_plain_deeper_model(tmp_path: Path) -> None:
    model = disturbed(structure="stack")
    ctrl.export_published(model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["num_hidden_layers"] == 6
    plain = AutoModelForCausalLM.from_config(ctrl.merge_back(model).config).eval()
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert torch.equal(plain(IDS).logits, model(IDS).logits)


def test_faults_are_named(tmp_path: Path) -> None:
    tensors = by_hand(tmp_path)
    gone = "model.layers.1.expanded_layer.mlp.up_proj.weight"
    save_file({n: t for n, t in tensors.items() if n != gone}, tmp_path / "model.safetensors")
    with pytest.raises(
        ctrl.CheckpointError, match=r"1 missing \(first: model\.layers\.1\.expanded_layer\.mlp\.up_proj"
    ):
        ctrl.load_published(tmp_path)
    save_file(tensors | {"model.layers.1.surprise": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ctrl.CheckpointError, match=r"1 extra \(first: model\.layers\.1\.surprise"):
        ctrl.load_published(tmp_path)
    theta = "model.layers.1.interpolation_factor"
    for name, value in ((gone, torch.ones(2)), (theta, torch.ones(5))):
        save_file(tensors | {name: value}, tmp_path / "model.safetensors")
        with pytest.raises(ctrl.CheckpointError, match=rf"1 of another shape \(first: {name}, \({len(value)},\)\)"):
            ctrl.load_published(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ctrl.CheckpointError, match="does not exist"):
        ctrl.load_published(tmp_path)
    by_hand(tmp_path, merge_method="lrp")
    with pytest.raises(ctrl.ConfigError, match="unknown merge_method 'lrp': did you mean 'lerp'"):
        ctrl.load_published(tmp_path)
    by_hand(tmp_path, expand_type="heap")
    with pytest.raises(ctrl.ConfigError, match="unknown expand_type 'heap'"):
        ctrl.load_published(tmp_path)
    tiny().save_pretrained(tmp_path / "plain")
    with pytest.raises(ctrl.CheckpointError, match="no 'expansion' object"):
        ctrl.load_published(tmp_path / "plain")


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    ctrl.export_published(disturbed(), tmp_path, max_shard_size="60KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(ctrl.CheckpointError, match=f"{shard.name} does not exist"):
        ctrl.load_published(tmp_path)
    for text, fault in (
        ("{}", "has no 'weight_map'"),
        ("[1]", "must hold a JSON object, but holds a list"),
        ("{", "cannot read"),
        ('{"weight_map": {"x": "../other.safetensors"}}', "names '../other.safetensors', which is not in its folder"),
    ):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ctrl.CheckpointError, match=fault):
            ctrl.load_published(tmp_path)


def test_a_matrix_that_is_not_square_is_named(tmp_path: Path) -> None:
    ctrl.export_published(disturbed(interpolation="proj"), tmp_path)
    name = "model.layers.1.linear_proj.weight"
    save_file(load_file(tmp_path / "model.safetensors") | {name: torch.ones(32, 31)}, tmp_path / "model.safetensors")
    with pytest.raises(ctrl.CheckpointError, match=rf"1 of another shape \(first: {name}, \(32, 31\)\)"):
        ctrl.load_published(tmp_path)


@pytest.mark.parametrize(
    ("gone", "fault"), [(3, "num_hidden_layers=4"), (1, r"19 missing \(first: model\.layers\.1\.")]
)
def test_a_layer_without_tensors_is_missed(tmp_path: Path, gone: int, fault: str) -> None:
    tensors = by_hand(tmp_path, freezed_layers=[0, 2, 3], merge_method="lerp")
    for name in [n for n in tensors if n.startswith("model.layers.3.")]:  # the layer is a plain one here
        value = tensors.pop(name)
        if ".pretrained_layer." in name:
            tensors[name.replace("pretrained_layer.", "")] = value
    kept = {n: t for n, t in tensors.items() if not n.startswith(f"model.layers.{gone}.")}
    save_file(tensors, tmp_path / "model.safetensors")
    assert [row.layer for row in ctrl.describe(ctrl.load_published(tmp_path))] == [1]
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(ctrl.CheckpointError, match=fault):
        ctrl.load_published(tmp_path)


@pytest.mark.parametrize(
    ("expansion", "extra", "said"),
    [
        ({"interpolation_norm_alpha": 0}, "expanded_layer.input_layernorm.interpolation_factor", "0"),
        ({"interpolation_norm_alpha": 0}, "expanded_layer.input_layernorm.alpha", "0"),
        ({}, "expanded_layer.input_layernorm.interpolation_factor", "missing"),
    ],
)
def test_tensors_of_norms_of_another_formula_are_explained(
    tmp_path: Path, expansion: dict[str, Any], extra: str, said: str
) -> None:
    tensors = by_hand(tmp_path, **expansion)
    if not expansion:
        values = json.loads((tmp_path / "config.json").read_text())
        del values["expansion"]["interpolation_norm_alpha"]
        (tmp_path / "config.json").write_text(json.dumps(values))
    save_file(tensors | {f"model.layers.1.{extra}": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ctrl.CheckpointError, match=rf"1 extra .*interpolation_norm_alpha is {said}, .*config\.json"):
        ctrl.load_published(tmp_path)


def test_a_base_of_another_depth_is_refused(tmp_path: Path) -> None:
    by_hand(tmp_path)
    config = tiny().config
    config.num_hidden_layers = 5
    deeper = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ctrl.CheckpointError, match=r"LlamaForCausalLM has 5 layers, .* expanded from 4: pass as base"):
        ctrl.load_published(tmp_path, base=deeper)


@pytest.mark.parametrize(
    "wrong",
    [{"vocab_size": "x"}, {"hidden_act": "x"}, {"intermediate_size": -1}, {"id2label": 5}, {"hidden_size": 1e30}],
)
def test_a_config_without_a_model_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    ctrl.export_published(disturbed(), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    with pytest.raises(ctrl.CheckpointError, match=r"no model can be built from .*config\.json .*: download it again"):
        ctrl.load_published(tmp_path)


def damaged(folder: Path) -> str:
    """Say how an export answers: which model it is, or why it is refused."""
    try:
        return f"alpha {ctrl.describe(ctrl.load_published(folder))[0].alpha:.1f}"
    except ctrl.CheckpointError as error:
        return str(error)


@pytest.mark.parametrize("sizes", [("60KB", "60KB"), ("60KB", "5GB"), ("5GB", "60KB")])
def test_an_export_that_is_killed_over_an_older_one_is_no_mix(
    sizes: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each file that is written, renamed or removed: the older is whole, or the folder is refused."""
    old, new = (disturbed(interpolation="lerp", alpha_start=alpha) for alpha in (0.2, 0.8))
    ctrl.export_published(old, tmp_path / "old", max_shard_size=sizes[0])
    found = []
    steps = {"replace": os.replace, "unlink": Path.unlink}
    for killed in itertools.count():
        folder, left = tmp_path / str(killed), [killed]
        shutil.copytree(tmp_path / "old", folder)

        def step(name: str, left: list[int] = left) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return steps[name](*args, **kwargs)

            return run

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", step("replace"))
            patch.setattr(Path, "unlink", step("unlink"))
            ctrl.export_published(new, folder, max_shard_size=sizes[1])
        found.append(damaged(folder))
        assert not (folder / ".export.part").exists()
        if left[0] >= 0:
            break
    assert found[0] == "alpha 0.2"
    assert found[-1] == "alpha 0.8"
    assert len(found) > 3
    assert all("cannot read" in one and "config.json" in one for one in found[1:-1])
    files = {path.name for path in folder.iterdir()}
    ctrl.export_published(new, tmp_path / "alone", max_shard_size=sizes[1])
    assert files == {path.name for path in (tmp_path / "alone").iterdir()}


def test_a_full_disk_leaves_the_older_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctrl.export_published(disturbed(alpha_start=0.2), tmp_path)
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")

    def full(state: Any, folder: Path, **options: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ctrl.published.save_torch_state_dict", full)
    with pytest.raises(OSError, match="No space left"):
        ctrl.export_published(disturbed(alpha_start=0.8), tmp_path)
    assert damaged(tmp_path) == "alpha 0.2"
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"
