"""A folder of tasks that somebody else wrote runs no code."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError
from experiments.evaluation.lm_eval_code import no_code_of_others, sandbox_templates


@pytest.mark.parametrize("allowed", [False, True])
def test_functions_next_to_a_task(tmp_path: Path, allowed: bool) -> None:
    from lm_eval.tasks import _yaml_loader

    (tmp_path / "utils.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(doc): return doc\n")
    (tmp_path / "t.yaml").write_text("task: t\nprocess_docs: !f%75nction utils.f\n")  # an escape hides the word
    said = "names the Python function utils.f, which would run on this machine: read it, then set run_code to true"
    refused = nullcontext() if allowed else pytest.raises(ConfigError, match=said)
    with no_code_of_others(allowed), refused:
        _yaml_loader.load_yaml(tmp_path / "t.yaml")
    assert (tmp_path / "ran").exists() is allowed


def test_functions_of_lm_eval_itself_run() -> None:
    from lm_eval.tasks import _yaml_loader

    with no_code_of_others(False):
        folder = Path(_yaml_loader.__file__).parent / "hellaswag"
        assert callable(_yaml_loader._import_func_in_yml("utils.process_docs", folder))


@pytest.mark.parametrize("where", ["here", "on the Hub"])
def test_a_metric_that_is_a_script(where: str, tmp_path: Path) -> None:
    from lm_eval.api import task

    before, name = task.get_metric, str(tmp_path) if where == "here" else "somebody/metric"
    with no_code_of_others(False), pytest.raises(ConfigError, match="as its metric, which would run on this machine"):
        task.get_metric(name, True)
    assert task.get_metric is before


def test_a_template_does_not_reach_python() -> None:
    from jinja2.exceptions import SecurityError
    from lm_eval import utils

    sandbox_templates()
    assert utils.apply_template("{{q}} {{'a-b' | regex_replace('-', '+')}}", {"q": 1}) == "1 a+b"
    assert utils.apply_template("{{q}}\n", {"q": 1}) == "1\n"
    with pytest.raises(SecurityError, match="access to attribute '__class__'"):
        utils.apply_template("{{''.__class__.__mro__[1].__subclasses__()}}", {})
