"""The whole YAML of a run: its digests, and the shipped files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from experiments.common.errors import ConfigError
from experiments.common.section import Section, number_types
from experiments.config import load_config, parse_config, run_config
from experiments.evaluation.suites.text import TextSuite
from experiments.studies.load import load_study
from tests.helpers.one_arm import config_of


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("sums", "40d6a487"),
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
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("experiments.models.base.load_base", lambda name, **given: calls.append((name, given)))
    config.load_base()
    chats = {"system": None, "options": {}, "template": None, "merge_system": False, "attention": None}
    assert calls == [(config.base_model, {"remote_code": trusted, "narrow": False, **chats})]
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


def sections(parent: type[Section] = Section) -> Iterator[type[Section]]:
    for one in parent.__subclasses__():
        if one.__module__.startswith("experiments."):
            yield one
        yield from sections(one)


NUMBERS = sorted(
    {(one.__module__, one.__qualname__, name): (one, name) for one in sections() for name in one.model_fields
     if number_types(one, name)}.items()
)  # fmt: skip
# what a number may be beyond 0 and more: an index from the end, the ends of a range, bounds of a figure, no clipping
ALLOWED = {
    ("Partial", "layers"): (-1,), ("TrainingConfig", "max_grad_norm"): (math.inf,),
    **{(kind, end): (-1,) for kind in ("Int", "Float", "Number") for end in ("low", "high")},
    **{("Constraint", end): (-1,) for end in ("min", "max")},
}  # fmt: skip


@pytest.mark.parametrize("field", [field for _, field in NUMBERS], ids=[".".join(key[1:]) for key, _ in NUMBERS])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, True])
def test_a_number_that_means_nothing_is_refused(field: tuple[type[Section], str], value: float) -> None:
    """Whatever section a later version adds: each of its numbers is tried."""
    section, name = field
    if value in ALLOWED.get((section.__name__, name), ()):
        return
    several = "tuple" in str(section.model_fields[name].annotation)
    with pytest.raises(ValidationError, match=r"validation error") as caught:
        section.model_validate({name: [value] if several else value})
    assert any(fault["loc"][:1] == (name,) for fault in caught.value.errors())


def test_all_numbers_of_all_sections_are_tried() -> None:
    assert len(NUMBERS) > 45


def test_warm_up_ends_before_training_does() -> None:
    def warmup(**training: int) -> int:
        values = {
            "name": "x",
            "training": training,
            "arms": [{"name": "a", "method": "full", "learning_rates": [1e-3]}],
        }
        return parse_config(values).training.warmup_steps

    with pytest.raises(ConfigError, match=r"warmup_steps=100 is more than steps=4: the learning rate would never"):
        warmup(steps=4, warmup_steps=100)
    assert [
        warmup(steps=4),
        warmup(steps=4, warmup_steps=5),
        warmup(steps=5),
        warmup(),
        warmup(steps=4, warmup_steps=2),
        warmup(steps=1),  # else it would train at a rate of 0
        warmup(steps=4, warmup_steps=4),  # as earlier versions wrote it into a run's folder
    ] == [3, 3, 5, 5, 2, 0, 4]


def test_the_config_of_a_run_that_is_gone_or_changed_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)config\.yaml.*The run wrote this file: bring it back, or delete it and run"
    ):
        run_config(tmp_path)
    (tmp_path / "config.yaml").write_text("arms: [")
    with pytest.raises(
        ConfigError, match=r"(?s)config\.yaml.*The run wrote this file: bring it back, or delete it and run"
    ):
        run_config(tmp_path)
