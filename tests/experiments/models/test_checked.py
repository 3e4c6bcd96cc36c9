"""What is no whole causal language model is refused in one line that names the file or the weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.common.errors import ModelError
from experiments.models.base import load_base
from tests.helpers.byte_level import CHATML, byte_base, byte_llama, byte_tokenizer
from tests.helpers.hostile import Ran

Change = Callable[[Path], object]
SIZES = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(byte_base(tmp_path_factory.mktemp("whole")))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "m"))


def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return apply


def config(**values: Any) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return apply


def written(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 3000)


def only(*names: str) -> Change:
    def change(folder: Path) -> None:
        (folder / names[0]).write_text("{}")
        for file in folder.iterdir():
            if file.name not in names:
                file.unlink()

    return change


def saved(model: Callable[[], Any]) -> Change:
    return lambda folder: model().save_pretrained(folder)


def not_a_number(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    return tensors


def bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, num_attention_heads=2))


def t5() -> Any:
    sizes = {"d_model": 32, "d_ff": 40, "d_kv": 16, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=260, **sizes))


FAULTS: dict[str, tuple[Change, str]] = {
    "a layer is missing": (
        weights(lambda t: {k: v for k, v in t.items() if ".layers.1." not in k}),
        r"9 missing \(model\.layers\.1\.input_layernorm\.weight, .*\.\.\.\)",
    ),
    "no head": (weights(lambda t: {k: v for k, v in t.items() if "lm_head" not in k}), r"1 missing \(lm_head\.weight"),
    "other names": (weights(lambda t: {f"x.{k}": v for k, v in t.items()}), r"21 missing .*; 21 unexpected \(x\."),
    "more layers": (config(num_hidden_layers=3), r"9 missing \(model\.layers\.2\."),
    "fewer layers": (config(num_hidden_layers=1), r"9 unexpected \(model\.layers\.1\."),
    "other shapes": (config(intermediate_size=40), r"of another shape \(.*\(32, 48\) instead of \(32, 40\)"),
    "half a vocabulary": (
        saved(lambda: byte_llama(130)),
        r"its tokenizer has 126 tokens beyond the 130 embeddings of the model \(the first is 130\)",
    ),
    "heads that do not divide": (config(num_attention_heads=5), r"config\.json cannot be used \(.*multiple of"),
    "a negative size": (config(hidden_size=-4), r"config\.json cannot be used \(.*negative dimension"),
    "a text for a size": (config(num_hidden_layers="two"), r"config\.json cannot be used \(.*expected int"),
    "config a list": (written("config.json", b"[]"), r"config\.json cannot be used"),
    "config empty": (written("config.json", b""), r"config\.json cannot be used|not a valid JSON"),
    "weights cut": (cut, r"model\.safetensors cannot be used"),
    "weights empty": (written("model.safetensors", b""), r"model\.safetensors cannot be used"),
    "weights random": (written("model.safetensors", bytes(range(256)) * 9), r"model\.safetensors cannot be used"),
    "tokenizer": (written("tokenizer.json", b"{x"), r"/tokenizer\.json cannot be used"),
    "tokenizer empty": (written("tokenizer.json", b""), r"/tokenizer\.json cannot be used"),
    "tokenizer's config": (written("tokenizer_config.json", b"{x"), r"tokenizer_config\.json cannot be used"),
    "generation config": (written("generation_config.json", b"{x"), r"generation_config\.json cannot be used"),
    "two replies": (
        written("generation_config.json", b'{"num_return_sequences": 2}'),
        r"generation_config\.json cannot be used \(Greedy .*num_return_sequences.*\): correct it, or save",
    ),
    "template empty": (written("chat_template.jinja", b""), r"its chat template leaves out a question and a reply"),
    "template NUL": (written("chat_template.jinja", bytes(40)), r"chat template leaves out|template fails"),
    "of an arm": (
        only("kept.json", "model.safetensors"),
        r"has what an arm of a run trained, no .* `control-llm export-model",
    ),
    "an expansion": (
        only("control_config.json", "config.json"),
        r"is an expansion of Control LLM, no whole model",
    ),
    "an adapter": (only("adapter_config.json"), r"is an adapter of PEFT, no whole model with its tokenizer"),
    "NaN": (weights(not_a_number), r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"),
    "looks at both sides": (saved(bert), r"no causal language model.*BertLMHeadModel"),
    "encoder and decoder": (saved(t5), r"no causal language model"),
    "a classifier": (
        saved(lambda: transformers.LlamaForSequenceClassification(byte_llama(260).config)),
        r"1 missing \(lm_head\.weight\); 1 unexpected \(score\.weight\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_refused(folder: Path, fault: str) -> None:
    change, said = FAULTS[fault]
    load_base(str(folder))
    change(folder)
    with pytest.raises(ModelError, match=said) as refused:
        load_base(str(folder))
    text = str(refused.value)
    assert text.startswith("base_model ")
    assert "\n" not in text
    assert "ignore_mismatched_sizes" not in text


TEMPLATES = {
    "hello": "leaves out a question and a reply",
    "{% for m in messages %}{{ m.role }}{% endfor %}": "leaves out a question and a reply",
    "{{ messages[0].content }}": "leaves out a reply",
    "{% for": r"chat template fails \(",
    "{{ raise_exception('not this') }}": r"chat template fails \(not this\)",
    "{{ messages.__class__.__mro__ }}": r"chat template fails \(",
    "{% for i in range(10 ** 9) %}{% endfor %}": r"chat template fails \(Range too big",
    "{{ 1 // 0 }}": r"chat template fails \(",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_fails_or_ignores_its_messages(whole: Path, tmp_path: Path, template: str) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    byte_tokenizer(template).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=TEMPLATES[template]):
        load_base(str(tmp_path))


def test_code_of_the_model_runs_only_if_asked_for(folder: Path) -> None:
    made = folder.parent / "ran"
    (folder / "own.py").write_text(
        f"open({str(made)!r}, 'w')\nfrom transformers import LlamaConfig as Own, LlamaForCausalLM as Model\n"
    )
    config(model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"})(folder)
    with pytest.raises(ModelError, match=r"Python files of its own.*set trust_remote_code: true"):
        load_base(str(folder))
    assert not made.exists()


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    folder = byte_base(tmp_path, model=byte_llama(260, tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = load_base(folder)[0]
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_special_tokens_of_other_models_need_no_embedding(tmp_path: Path) -> None:
    """Gemma's text models have a token for images that is one beyond their embeddings."""
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.add_tokens([transformers.AddedToken("<image>", special=True)])
    load_base(byte_base(tmp_path, tokenizer, byte_llama(260)))


def test_a_name_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"could not be loaded.*\nIt is neither 'smollm2-135m-instruct' \(shipped\)"):
        load_base(str(tmp_path / "nowhere"))


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no file named model\.safetensors"):
        load_base(str(folder))


def test_pickled_weights_run_no_code_and_nothing_says_how_to(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Ran(tmp_path / "ran")}, folder / "pytorch_model.bin")
    said = r"pytorch_model\.bin cannot be used \(it is damaged, or a pickle of more than tensors"
    with pytest.raises(ModelError, match=said) as found:
        load_base(str(folder))
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(found.value)


def test_an_index_that_names_weights_of_another_folder_is_refused(folder: Path) -> None:
    """They would be the base's, and no stamp of its own files would change with them."""
    file = folder / "model.safetensors"
    names = list(load_file(file))
    (folder.parent / "other").mkdir()
    file.rename(folder.parent / "other" / file.name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, f"../other/{file.name}")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"names '\.\./other/model\.safetensors', which is not in its folder"):
        load_base(str(folder))


def test_a_config_that_asks_for_tuples_is_read_like_any_other(whole: Path, folder: Path) -> None:
    config(return_dict=False)(folder)
    ids = torch.arange(8)[None]
    outputs = [load_base(str(one))[0](input_ids=ids).logits for one in (whole, folder)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_file_that_may_not_be_read_is_not_called_missing(
    file: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors says that there is no such file. A test that runs as root may read all: the system is a stand-in."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != file and access(path, mode))
    (folder / file).unlink()
    (folder / file).mkdir()  # nor may it be opened
    with pytest.raises(ModelError, match=rf"{file} may not be read by this user: change its mode"):
        load_base(str(folder))
