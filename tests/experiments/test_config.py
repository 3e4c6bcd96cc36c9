"""The whole YAML of a run: its digests, and the shipped files."""

from __future__ import annotations

from pathlib import Path

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


def test_every_shipped_config_loads() -> None:
    configs = sorted((Path(__file__).parents[2] / "experiments" / "configs").rglob("*.yaml"))
    assert configs
    for path in configs:
        assert path.read_text().startswith("# "), f"{path.name} says in its first line what it shows"
        if path.parent.name == "studies":
            load_study(path)
        else:
            load_config(path)
