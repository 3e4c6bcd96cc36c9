"""The settings of suite `lm_eval`: faults, what the cache goes by, presets."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.config import parse_config
from experiments.evaluation.lm_eval_model import halve_batches, wrapped
from experiments.evaluation.suites.lm_eval import PRESETS, HarnessSettings, _plain
from experiments.models.tokens import prompt_ids
from tests.helpers.byte_level import R1, byte_llama, byte_tokenizer
from tests.helpers.lm_eval_suite import config_of, harness
from tests.helpers.lm_eval_tasks import write_tasks
from tests.helpers.small_run import small_values

pytestmark = pytest.mark.slow


def test_code_is_known_by_its_name_and_file(tmp_path: Path) -> None:
    """A filter of one's own is a class, which lm_eval imports without a name: as text it would be equal in any code."""
    found = set[str]()
    for i, says in enumerate(("x", "y")):
        file = tmp_path / f"utils_{i}.py"
        file.write_text(f"class Own:\n    def __call__(self, said): return {says!r}\n")
        names: dict[str, Any] = {"__name__": "utils"}
        exec(compile(file.read_text(), str(file), "exec"), names)
        own = names["Own"]
        assert _plain(own) == _plain(own()) == f"Own\n{file.read_text()}"
        assert _plain(functools.partial(own(), 1)) == f"Own\n{file.read_text()}\n(1,)\n{{}}"
        for function in (own.__call__, own().__call__, functools.cache(own.__call__)):  # another one of the same file
            assert _plain(function) == f"Own.__call__\n{file.read_text()}"
        found.add(_plain(own))
    assert len(found) == 2
    assert _plain(3) == "3"


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"kept": ["colour"]}, r"unknown task 'colour'.*'colours'"),
            ({"kept": ["sums"]}, r"evaluation.suites.lm_eval: sums cannot be new and kept"),
            ({"include_path": "/nowhere/at/all"}, r"include_path=/nowhere/at/all: no such folder"),
        ],
    )
    def test_faults_are_named(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], message: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(folder / "tasks" / "manager.py"))  # not its 16,000
        with pytest.raises(ConfigError, match=message):
            harness(folder, tokenizer, **settings)

    def test_code_runs_only_when_asked_for(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
    ) -> None:
        write_tasks(tmp_path)
        task = tmp_path / "sums.yaml"
        task.write_text(task.read_text() + "unsafe_code: true\n")
        settings = {"include_path": str(tmp_path)}
        with pytest.raises(ConfigError, match=r"sums runs code that the model wrote, on this machine: set run_code"):
            harness(folder, tokenizer, **settings)
        assert harness(folder, tokenizer, **settings, run_code=True).size == 16

    def test_code_that_a_tasks_functions_import_is_in_the_key_of_the_cache(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The base's answers that old code graded would be compared with those that new code grades."""
        monkeypatch.syspath_prepend(str(tmp_path))
        write_tasks(tmp_path)
        helper = tmp_path / "helper_of_sums.py"
        helper.write_text("def right(doc, results): return {'acc': 1.0}\n")
        (tmp_path / "utils_of_sums.py").write_text("import helper_of_sums\n\ndef grade(doc, results):\n"
                                                   "    return helper_of_sums.right(doc, results)\n")  # fmt: skip
        task = tmp_path / "sums.yaml"
        own = task.read_text().replace("metric: exact_match", "metric: acc")
        task.write_text(own + "process_results: !function utils_of_sums.grade\n")
        settings = {"include_path": str(tmp_path), "run_code": True}
        before = harness(folder, tokenizer, **settings).content()
        assert harness(folder, tokenizer, **settings).content() == before
        helper.write_text("def right(doc, results): return {'acc': 0.0}\n")
        with pytest.raises(
            ConfigError, match=r"helper_of_sums\.py has changed since this process imported it: restart"
        ):
            harness(folder, tokenizer, **settings).content()  # the old code would grade
        monkeypatch.setattr("experiments.data.grader_files._IMPORTED", {})  # as in a new process
        after = harness(folder, tokenizer, **settings).content()
        assert after["tasks"]["sums"] != before["tasks"]["sums"]
        assert after["tasks"]["colours"] == before["tasks"]["colours"]

    @pytest.mark.parametrize("metrics", [["bypass"], ["bleu"]])
    def test_a_task_that_says_of_no_item_whether_it_is_right(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, metrics: list[str]
    ) -> None:
        """Known before anything is measured."""
        write_tasks(tmp_path)
        task = yaml.safe_load((tmp_path / "sums.yaml").read_text())
        task["metric_list"] = [{"metric": name} for name in metrics]
        (tmp_path / "sums.yaml").write_text(yaml.safe_dump(task))
        with pytest.raises(ConfigError, match=rf"task sums of lm_eval gives {metrics[0]}, none of which says"):
            harness(folder, tokenizer, include_path=str(tmp_path))

    def test_a_metric_that_humaneval_has_is_a_verdict(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
    ) -> None:
        """lm_eval calls it pass_at_k before it has run, and pass@1 in its results."""
        write_tasks(tmp_path)
        task = yaml.safe_load((tmp_path / "sums.yaml").read_text())
        del task["metric_list"]
        metric = "metric_list:\n- metric: !function own.pass_at_k\n  aggregation: mean\n  higher_is_better: true\n"
        (tmp_path / "sums.yaml").write_text(yaml.safe_dump(task) + metric)
        (tmp_path / "own.py").write_text("def pass_at_k(references, predictions):\n    return {'pass@1': 1.0}\n")
        suite = harness(folder, tokenizer, include_path=str(tmp_path), run_code=True)
        assert list(suite.loaded["sums"].aggregation()) == ["pass_at_k"]

    def test_nothing_to_measure(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match=r"evaluation.suites.lm_eval: needs `kept` or `new`"):
            config_of(folder, new=[], kept=[])

    def test_the_flat_section_needs_its_name_in_suites(self, folder: Path) -> None:
        values = config_of(folder).to_flat()
        values["evaluation"]["suites"] = ["new"]
        with pytest.raises(ConfigError, match=r"`lm_eval` needs both its section .* and its name in `suites`"):
            parse_config(values)

    @pytest.mark.parametrize(
        ("evaluation", "place"),
        [
            ({"suites": ["lm_eval"]}, "suites.lm_eval"),
            ({"suites": {"lm_eval": None}}, "suites.lm_eval"),
            ({"suites": ["lm_eval"], "lm_eval": None}, "lm_eval"),
            ({"suites": ["lm_eval"], "lm_eval": {"limit": 3}}, "lm_eval"),
        ],
    )
    def test_a_suite_without_tasks(self, folder: Path, evaluation: dict[str, Any], place: str) -> None:
        values = small_values(str(folder / "base"), evaluation=evaluation)
        with pytest.raises(ConfigError, match=rf"evaluation.{place}: needs `kept` or `new` with at least one task"):
            parse_config(values)

    def test_what_the_cache_goes_by(self, folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
        """Items, settings and the code of a task's functions; neither the batch size nor where a function lies."""

        def content(**settings: Any) -> str:
            return json.dumps(harness(folder, tokenizer, **settings).content(), sort_keys=True)

        first = content()
        assert content() == first == content(batch_size=3)
        assert len({first, content(limit=7), content(fewshot=1), content(chat=True)}) == 4
        own = write_tasks(tmp_path)
        yaml_file, code, data = (tmp_path / name for name in ("sums.yaml", "own.py", "sums.jsonl"))
        text = yaml.safe_load(yaml_file.read_text())["doc_to_text"]
        yaml_file.write_text(yaml_file.read_text().replace(yaml.safe_dump({"doc_to_text": text}), ""))
        yaml_file.write_text(yaml_file.read_text() + "doc_to_text: !function own.text\n")
        code.write_text("def text(doc):\n    return str(doc['a'])\n")
        contents = [content(include_path=own, run_code=True), content(include_path=own, run_code=True)]
        code.write_text("HINT = 'now with a hint'\n" + code.read_text())
        contents.append(content(include_path=own, run_code=True))
        data.write_text(data.read_text().replace('"sum": 5', '"sum": 6'))
        contents.append(content(include_path=own, run_code=True))
        assert contents[0] == contents[1]
        assert len(set(contents)) == 3

    def test_examples_of_ones_own_tasks_are_in_the_key_of_the_cache(
        self, tokenizer: PreTrainedTokenizerBase, folder: Path, tmp_path: Path
    ) -> None:
        own, found = write_tasks(tmp_path), []
        shots, file = tmp_path / "shots.jsonl", tmp_path / "colours.yaml"
        values = yaml.safe_load(file.read_text()) | {"fewshot_split": "shots"}
        values["dataset_kwargs"]["data_files"]["shots"] = str(shots)
        file.write_text(yaml.safe_dump(values))
        for colour in (0, 1, 1):
            docs = [{"thing": f"thing {i}", "colour": colour} for i in range(4)]
            shots.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
            settings = {"new": [], "kept": ["colours"], "include_path": own}
            found.append([harness(folder, tokenizer, fewshot=n, **settings).content() for n in (0, 2)])
        assert found[1] == found[2]
        assert [found[0][i] == found[1][i] for i in (0, 1)] == [True, False]

    def test_the_batch_size_is_in_no_digest_unless_it_is_given(self, folder: Path) -> None:
        given, automatic = config_of(folder, batch_size=8), config_of(folder)
        assert automatic.evaluation.settings("lm_eval").batch_size == "auto"
        assert given.digest() == automatic.digest() != config_of(folder, batch_size=4).digest()
        with pytest.raises(ConfigError, match=r"batch_size.*Input should be 'auto'"):
            config_of(folder, batch_size="most")

    def test_a_batch_without_room_is_asked_again_in_halves(self) -> None:
        class Model:
            batch_size_per_gpu, asked = 64, list[int]()

            def loglikelihood(self, requests: list[str]) -> list[str]:
                self.asked.append(self.batch_size_per_gpu)
                if self.batch_size_per_gpu > 16:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return requests

            loglikelihood_rolling = generate_until = loglikelihood

        model = Model()
        halve_batches(model)
        assert [model.loglikelihood(["a"]), model.generate_until(["b"])] == [["a"], ["b"]]
        assert model.asked == [64, 32, 16, 16]

    def test_presets(self, folder: Path) -> None:
        values = small_values(str(folder / "base"))
        values["evaluation"]["suites"] = ["lm_eval"]
        values["evaluation"]["lm_eval"] = {"preset": "paper_math", "limit": 7, "new": ["gsm8k"]}
        settings = parse_config(values).evaluation.settings("lm_eval")
        assert settings.new == ("gsm8k",)
        assert {"arc_challenge", "mmlu", "mmlu_pro"} < set(settings.kept)
        assert (settings.limit, settings.fewshot) == (7, 0)
        named: set[str] = set()
        for path in PRESETS.glob("*.yaml"):
            values["evaluation"]["lm_eval"] = {"preset": path.stem}
            preset = parse_config(values).evaluation.settings("lm_eval")
            named |= {*preset.new, *preset.kept}
        paper = "arc_challenge gpqa_main_zeroshot mmlu mmlu_pro gsm8k minerva_math leaderboard_math_hard humaneval mbpp"
        assert {*paper.split(), "ceval-valid", "cmmlu", "bbh"} <= named
        values["evaluation"]["lm_eval"] = {"preset": "paper_maths"}
        with pytest.raises(ConfigError, match=r"unknown preset 'paper_maths': did you mean 'paper_math'"):
            parse_config(values)


def test_lm_eval_asks_as_the_model_was_trained(folder: Path) -> None:
    """No end of text after a question, and no think block that whole chats do not have."""
    tokenizer = byte_tokenizer(R1, bos=True, eos_added=True, eos="</s>")
    suite = harness(folder, tokenizer)
    model = wrapped(byte_llama(len(tokenizer)), suite.tokenizer, 1)
    assert suite.tokenizer.decode(model.tok_encode("hi")) == "<s>hi"
    asked = model.apply_chat_template([{"role": "user", "content": "hi"}])
    assert model.tok_encode(asked) == prompt_ids(tokenizer, "hi")
    assert tokenizer.decode(tokenizer("hi")["input_ids"]) == "<s>hi</s>"  # the run's own stays as it is


def test_every_task_of_the_presets_exists_in_lm_eval() -> None:
    """Nothing is downloaded: the index is made of the installed package's YAML files."""
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    presets = sorted(PRESETS.glob("*.yaml"))
    assert len(presets) == 3
    for path in presets:
        settings = HarnessSettings(**yaml.safe_load(path.read_text()))
        assert {*settings.new, *settings.kept} <= known, path.name
