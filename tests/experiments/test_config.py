"""The whole YAML of a run: its digests, and the shipped files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from experiments.config import load_config
from experiments.evaluation.suites.text import TextSuite
from experiments.studies.load import load_study
from tests.helpers.one_arm import config_of


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("quickstart", "a528516a"),
        ("cpt-python", "0c7903ed"),
        ("stream", "f316d842"),
    ],
)
def test_digests_are_those_of_earlier_versions(name: str, digest: str) -> None:
    """They name the folders of runs: another digest would train a finished run again."""
    assert load_config(name).digest() == digest


def test_what_is_new_has_a_digest_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = config_of({"suites": ["new", "text"]}).to_flat()

    class Settings(TextSuite.Settings):
        story: str = Field("first", description="which story")

    monkeypatch.setattr(TextSuite, "Settings", Settings)
    config = config_of({"suites": ["new", "text"]}).evaluation
    assert config.to_flat() == before["evaluation"]
    monkeypatch.setattr(config, "_settings", {"text": Settings(story="second")})
    assert config.to_flat() == before["evaluation"] | {"suites": ["new", {"text": {"story": "second"}}]}


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_the_base_model_runs_only_if_the_yaml_says_so(trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of({}).model_copy(update={"trust_remote_code": trusted})
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("experiments.models.base.load_base", lambda *given: calls.append(given))
    config.load_base()
    assert calls == [(config.base_model, None, {}, trusted)]
    assert config.to_dict().get("trust_remote_code", False) is trusted
    assert (config.digest() == config_of({}).digest()) is not trusted


def test_every_shipped_config_loads() -> None:
    configs = sorted((Path(__file__).parents[2] / "experiments" / "configs").rglob("*.yaml"))
    assert configs
    for path in configs:
        assert path.read_text().startswith("# "), f"{path.name} says in its first line what it shows"
        if path.parent.name == "studies":
            load_study(path)
        else:
            load_config(path)
