"""Names, tokenizers and shapes of models; and each wrong one is refused before anything heavy is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from experiments.cli.main import main
from experiments.common.errors import ConfigError
from experiments.measure.base import Base
from experiments.measure.models import is_of, noted_facts, read_base, read_models
from experiments.measure.tokenizers import load_tokenizer
from tests.helpers import families
from tests.helpers.byte_level import byte_base, byte_tokenizer
from tests.helpers.measured import adapter_folder, model_folder, read, tiny_model, training_folder


@pytest.fixture(autouse=True)
def _nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.measure.base.load_model", None)  # would fail if it were called
    monkeypatch.setattr("experiments.measure.session.load_base", None)


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_names_and_kinds(base: str, models: dict[str, str]) -> None:
    found = read(base, *(f"{name}={folder}" for name, folder in models.items()))
    assert [model.name for model in found] == list(models)
    assert [[one.step for one in model.checkpoints] for model in found][5] == [10, 20]
    (plain,) = read(base, models["same"])
    assert (plain.name, plain.own, plain.extra, plain.left_out) == ("same", False, 0, {})
    for name, match in (
        (f"same={models['same']}", "a name of its own"),
        ("a/b=x", "write NAME=MODEL; a folder"),
    ):
        with pytest.raises(ConfigError, match=match):
            read(base, models["same"], name)


def test_another_tokenizer_above_the_checkpoints_is_another_model(base: str, tmp_path: Path) -> None:
    """Trainer writes it there: its files are not those of a checkpoint, but the model is asked with it."""
    folder = training_folder(tmp_path / "out")
    (found,) = read(base, folder)
    noted = noted_facts(found)
    assert is_of(noted, found)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = f"Be brief.{tokenizer.chat_template}"
    tokenizer.save_pretrained(folder)
    (found,) = read(base, folder)
    assert not is_of(noted, found)
    earlier = {name: value for name, value in noted.items() if name not in ("tokenizer", "remark")}
    assert is_of(earlier, found)  # of an earlier version


def test_added_tokens_are_counted(base: str, models: dict[str, str]) -> None:
    (found,) = read(base, models["resized"])
    assert (found.own, found.left_out, found.extra, found.remark) == (True, {}, 1, "")


def test_another_architecture_has_answers_and_a_smaller_vocabulary_no_drift(base: str, tmp_path: Path) -> None:
    deeper = byte_base(tmp_path / "deeper", byte_tokenizer(), tiny_model(num_hidden_layers=3))
    smaller = byte_base(tmp_path / "smaller", byte_tokenizer(), tiny_model(vocabulary=258))
    first, second = read(base, deeper, smaller)
    assert first.left_out == {"alignment": "another architecture: num_hidden_layers 3, not 2"}
    assert second.left_out == {"drift": "it predicts 258 tokens, the base 260"}


def change(name: str, folder: Path) -> None:
    """Damage a copy of a model in the way `name`."""
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    if name == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif name == "no weights":
        next(folder.glob("*model.safetensors")).unlink()
    elif name == "no config":
        (folder / "config.json").unlink()
    elif name == "half":
        file = next(folder.glob("*model.safetensors"))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif name == "unknown architecture":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "martian"}))
    elif name == "checkpoint without weights":
        (folder / "checkpoint-20" / "model.safetensors").unlink()
    elif name == "damaged config":
        (folder / "config.json").write_text("{")
    elif name == "other base's name":
        adapter = json.loads((folder / "adapter_config.json").read_text())
        adapter["base_model_name_or_path"] = "somebody/else"
        (folder / "adapter_config.json").write_text(json.dumps(adapter))


def test_weights_of_an_arm_of_this_base_have_its_tokenizer(base: str, models: dict[str, str], tmp_path: Path) -> None:
    """The bench saves none with them; those of another base are refused."""
    folder = Path(shutil.copytree(models["same"], tmp_path / "trained"))
    change("no tokenizer", folder)
    found, tokenizer = Base(base, Path(base)), load_tokenizer(base)
    (folder / "base.json").write_text(json.dumps({"name": base}))
    (model,) = read_models([str(folder)], found, tokenizer, ())
    assert model.tokenizer is tokenizer
    (folder / "base.json").write_text(json.dumps({"name": "another"}))
    with pytest.raises(ConfigError, match="has no tokenizer"):
        read_models([str(folder)], found, tokenizer, ())


def test_an_adapter_of_another_folder_of_the_same_name_is_refused(base: str, tmp_path: Path) -> None:
    """Of bases run-1/model and run-2/model only the last part was looked at: each took the other's adapter."""
    own, other = (model_folder(tmp_path / run / "model", noise) for run, noise in (("run-1", 0.0), ("run-2", 0.5)))
    adapter = adapter_folder(tmp_path / "adapter", own)
    assert read(own, adapter)
    with pytest.raises(ConfigError, match=r"whose model\.safetensors is another file than that of --base .*run-2"):
        read(other, adapter)
    copied = str(shutil.copytree(own, tmp_path / "copied" / "model"))
    assert read(copied, adapter)
    shutil.rmtree(own)  # trained elsewhere: the name alone is known
    assert read(other, adapter)


@pytest.mark.parametrize("own", ["the last checkpoint", "the best one", "an adapter"])
def test_a_training_s_folder_with_another_model_than_its_last_checkpoint_is_refused(
    own: str, base: str, models: dict[str, str], tmp_path: Path
) -> None:
    """As after load_best_model_at_end: the figures of the last checkpoint are not those of the model."""
    folder = Path(shutil.copytree(models["trained"], tmp_path / "trained"))
    source = Path(models["adapter"]) if own == "an adapter" else folder / "checkpoint-20"
    for file in (path for path in source.iterdir() if path.suffix in (".json", ".safetensors")):
        shutil.copy(file, folder / file.name)
    if own == "the best one":
        shutil.copy(folder / "checkpoint-10" / "model.safetensors", folder)
    if own == "the last checkpoint":
        (found,) = read(base, str(folder))
        assert found.steps == [10, 20]
        return
    with pytest.raises(ConfigError, match=r"holds a model and checkpoints, of which the last, checkpoint-20, is anoth"):
        read(base, str(folder))


@pytest.mark.parametrize(
    ("model", "damage", "match"),
    [
        ("same", "no tokenizer", "has no tokenizer (tokenizer.json, tokenizer_config.json, tokenizer.model): save it"),
        ("same", "no weights", "has a config.json but no weights"),
        ("same", "no config", "is no model: it has no config.json, but"),
        ("same", "half", "model.safetensors is cut short or damaged"),
        ("same", "damaged config", "config.json is not the config of a model"),
        ("same", "unknown architecture", "config.json is not the config of a model"),
        ("trained", "checkpoint without weights", "checkpoint-20 has a config.json but no weights"),
        ("trained", "no tokenizer", "has no tokenizer"),
        ("adapter", "no weights", "has adapter_config.json but no adapter_model.safetensors: half a checkpoint"),
        ("adapter", "half", "adapter_model.safetensors is cut short or damaged"),
        ("adapter", "other base's name", "is an adapter of 'somebody/else', --base is"),
        ("expansion", "no weights", "model.safetensors is missing: half a checkpoint"),
        ("expansion", "half", "model.safetensors is cut short or damaged"),
    ],
)
def test_a_damaged_folder_ends_with_2_and_says_what_to_do(
    base: str, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    model: str, damage: str, match: str,
) -> None:  # fmt: skip
    folder = Path(shutil.copytree(models[model], tmp_path / "damaged"))
    change(damage, folder)
    assert main(["measure", "--base", base, "--model", str(folder), "--root", str(tmp_path / "mlruns")]) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ("adapter", r"is for 32 features, but in .* model\.layers\.0\..* is of shape"),
        ("expansion", r"was trained on .*, --base is .*: hidden_size 32 there, 48 here"),
    ],
)
def test_a_base_of_other_shapes_is_refused(models: dict[str, str], tmp_path: Path, model: str, match: str) -> None:
    other = byte_base(tmp_path / "base", byte_tokenizer(), tiny_model(hidden_size=48))
    for allow in (False, True):
        with pytest.raises(ConfigError, match=match):
            read(other, models[model], allow_other=allow)


@pytest.mark.parametrize("name", ["mlp.experts.base_layer", "mlp.experts.1.down_proj", "mlp.experts"])
def test_adapters_of_stacked_experts_are_no_adapters_of_other_shapes(tmp_path: Path, name: str) -> None:
    """transformers 4 wrote them expert by expert, and PEFT reads these too; now they are of a stack of matrices."""
    model = families.build("mixtral")
    base = byte_base(tmp_path / "base", byte_tokenizer(), model)
    adapter_folder(tmp_path / "adapter", base)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    key = f"base_model.model.model.layers.0.{name}.lora_A.weight"
    save_file({key: torch.zeros(8, 48)}, file, metadata={"format": "pt"})
    assert read(base, str(tmp_path / "adapter"))[0].kind == "PEFT adapter"
    save_file({key.replace("mlp.experts", "mlp.other"): torch.zeros(8, 48)}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="is missing"):
        read(base, str(tmp_path / "adapter"))


@pytest.mark.parametrize("part", ["A", "B"])
def test_a_tensor_of_an_adapter_that_is_no_matrix_is_named(base: str, tmp_path: Path, part: str) -> None:
    adapter_folder(tmp_path / "adapter", base)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    odd = f"base_model.model.odd.lora_{part}.weight"
    save_file({**load_file(file), odd: torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"{odd} has the shape \[2\], and is no matrix: save the adapter again"):
        read(base, str(tmp_path / "adapter"))


def test_code_that_a_model_brings_along_runs_only_if_asked_for(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(model_folder(tmp_path / "own"))
    config = json.loads((folder / "config.json").read_text())
    maps = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own-llama", "auto_map": maps}))
    (folder / "own_code.py").write_text(OWN_CODE)
    with pytest.raises(ConfigError, match=r"own brings Python files of its own .*, then add --trust-remote-code"):
        read(base, str(folder))
    loading = {"remote_code": True, "dtype": "fp32", "device_map": None}
    (model,) = read(base, str(folder), loading=loading)
    assert model.left_out == {"alignment": "another architecture: model_type own-llama, not llama"}
    monkeypatch.undo()
    loaded = model.checkpoints[0].kind.load(folder, read_base(base, loading=loading))
    assert type(loaded).__name__ == "OwnModel"


def test_an_expansion_is_loaded_on_one_device(base: str, models: dict[str, str]) -> None:
    loading = {"remote_code": False, "dtype": "fp32", "device_map": "auto"}
    for name in ("expansion", "published"):
        with pytest.raises(ConfigError, match="is an expansion, which is loaded on one device: --device-map auto is"):
            read(base, models[name], loading=loading)
    assert read(base, models["expansion"], loading={**loading, "device_map": "cpu"})[0].kind == "folder of ctrl.save"


def test_an_adapter_of_a_base_of_another_name_can_be_vouched_for(
    base: str, models: dict[str, str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models["adapter"], tmp_path / "adapter"))
    change("other base's name", folder)
    assert read(base, str(folder), allow_other=True)[0].kind == "PEFT adapter"


def test_the_base_must_be_a_whole_model(base: str, models: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"adapter is a PEFT adapter: name the whole model from which it was trained"):
        read(models["adapter"], base)
    assert read_base(base).facts["vocab_size"] == AutoConfig.from_pretrained(base).vocab_size


def test_an_adapter_of_virtual_tokens_is_refused(base: str, models: dict[str, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["adapter"], tmp_path / "prompt"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5})
    )
    with pytest.raises(ConfigError, match=r"prompt is an adapter of virtual tokens \(PROMPT_TUNING\), which are read"):
        read_models([str(folder)], read_base(base), byte_tokenizer())


@pytest.mark.parametrize("start", ["pissa_niter_4", "lora_ga"])
def test_an_adapter_whose_start_is_not_repeated_is_refused(
    base: str, models: dict[str, str], tmp_path: Path, start: str
) -> None:
    """PEFT loads it without a word, with logits that are a tenth off."""
    folder = Path(shutil.copytree(models["adapter"], tmp_path / "started"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": start}))
    with pytest.raises(ConfigError, match=f"started was trained from the start '{start}'.*it would be another model"):
        read_models([str(folder)], read_base(base), byte_tokenizer())
