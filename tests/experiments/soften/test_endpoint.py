"""The end of the path of what is not a whole model: alpha is the scale of an adapter, and the dial of an expansion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

import ctrl
from experiments.common.errors import ConfigError
from experiments.measure.base import Base
from experiments.measure.models import read_base, read_models
from experiments.measure.tokenizers import load_tokenizer
from experiments.soften.endpoint import endpoint
from experiments.soften.path import WeightPath
from tests.helpers.byte_level import byte_base
from tests.helpers.measured import adapter_folder, disturb, expansion_folder, model_folder, tiny_model


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return read_base(model_folder(tmp_path / "base"))


def at(alpha: float, model: str, base: Base, folder: Path) -> PreTrainedModel:
    """Load the point of the path to a model."""
    (found,) = read_models([model], base, load_tokenizer(base.folder))
    return WeightPath(base.folder, endpoint(found, base, folder, print)).load(alpha, base, folder / "point")


def assert_same_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    weights = other.state_dict()
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-6)


def test_of_an_adapter_it_is_its_scale(base: Base, tmp_path: Path) -> None:
    model = adapter_folder(tmp_path / "adapter", str(base.folder))
    loaded = PeftModel.from_pretrained(base.load(), model)
    for module in loaded.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(0.3)
    assert_same_weights(at(0.3, model, base, tmp_path / "merged"), loaded.merge_and_unload())


def test_of_an_expansion_it_is_the_dial_as_a_share_of_the_trained_alpha(base: Base, tmp_path: Path) -> None:
    model = expansion_folder(tmp_path / "expansion")
    loaded = ctrl.load(base.load(), model)
    alpha = ctrl.describe(loaded)[0].alpha
    assert alpha is not None
    with ctrl.at_alpha(loaded, 0.4 * alpha):
        assert_same_weights(at(0.4, model, base, tmp_path / "merged"), ctrl.merge_back(loaded))


def test_an_adapter_on_a_layer_that_shares_its_weight_is_not_merged(tmp_path: Path) -> None:
    """It was folded into the head of the base too: logits of another model."""
    tied = tiny_model(tie_word_embeddings=True)
    base = read_base(byte_base(tmp_path / "base", model=tied))
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM")
    tied.name_or_path = str(base.folder)
    disturb(get_peft_model(tied, config), 0.3, "lora_").save_pretrained(tmp_path / "adapter")
    said = r"--model .*adapter: it cannot be merged .*the adapter on embed_tokens .* \(tied embeddings\)"
    with pytest.raises(ConfigError, match=said):
        at(1.0, str(tmp_path / "adapter"), base, tmp_path / "merged")
    assert not (tmp_path / "merged" / "merged").exists()
