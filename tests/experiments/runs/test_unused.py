"""Fields without effect are refused with the field that they need; more are rows of `tests/helpers/bad_runs.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.common.paths import SHIPPED
from experiments.common.yaml_values import dump_yaml
from experiments.config import load_config, parse_config
from experiments.runs.unused import check_fields, notes, unused_fields
from experiments.training.schedules import infinite_factor

ARM = {"name": "a", "method": "full", "learning_rates": [1e-3]}
OLD = {"old": {"source": "reasoning_gym", "name": "spell_backward"}}


def faults(arm: dict[str, Any], **sections: Any) -> list[str]:
    given = {key: value for key, value in {**ARM, **arm}.items() if value is not None}
    return unused_fields(parse_config({"name": "x", "arms": [given], **sections}))


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_have_none(path: Any) -> None:
    check_fields(load_config(path))
    load_config(path).evaluation.check_settings()


@pytest.mark.parametrize(
    "arm", [{"method": "ewc"}, {"method": "corda"}, {"replay": 0.1}, {"method": None, "loss": ["ewc"]}]
)
def test_old_text_may_be_read_without_being_replayed(arm: dict[str, Any]) -> None:
    assert not faults(arm, data=OLD)
    assert faults({}, data=OLD) == [
        "data.old is read by no arm: give data.replay, the share of its tokens, or leave it out"
    ]


def test_a_choice_of_replayed_examples_needs_an_arm_that_replays() -> None:
    chosen = {**OLD, "choose": {"by": "loss"}}
    said = "data.choose has no effect, since no arm replays: give data.replay, or leave it out"
    assert faults({"method": "ewc"}, data=chosen) == [said]  # which reads old text, but not what was chosen of it
    assert not faults({"method": "ewc", "replay": 0.1}, data=chosen)


@pytest.mark.parametrize(
    ("shares", "unread"),
    [
        ((0.0, 0.0), ["data.replay", "data.old", "data.choose"]),  # nothing is replayed
        ((0.1, 0.0), ["data.replay"]),
        ((0.0, None), []),
        ((None, None), []),
    ],
)
def test_replay_of_arms_that_all_set_their_own(shares: tuple[float | None, ...], unread: list[str]) -> None:
    data = {**OLD, "choose": {"by": "loss"}, "replay": 0.25}
    arms = [{**ARM, "name": f"a{i}", "replay": share} for i, share in enumerate(shares)]
    found = unused_fields(parse_config({"name": "x", "arms": arms, "data": data}))
    assert [fault.split()[0] for fault in found] == unread
    assert not unused_fields(parse_config({"name": "x", "arms": arms, "data": data, "grows": True}))  # arms may come


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"method": "kl", "control": {"layers": 2}}, ""),  # said, not refused: ArmConfig.notes
        ({"method": "kl", "options": {"trains": "control"}, "control": {"layers": 2}}, ""),
        ({"method": "partial", "control": {"layers": 2}}, ""),
        ({"method": "partial", "control": {"layers": 2, "alpha": "learned"}}, "control.alpha has no effect"),
        ({"method": None, "train": {"control": {"margin": 0.1}}}, "it needs divergence cosine"),
        ({"method": "hybrid", "control": {"divergence": "cosine"}}, ""),
    ],
)
def test_control_has_an_effect_on_what_is_expanded(arm: dict[str, Any], said: str) -> None:
    found = faults(arm)
    assert bool(found) is bool(said)
    assert said in "".join(found)


def test_copies_train_in_fp32() -> None:
    found = faults({"method": "control", "control": {"copies_dtype": "base"}})
    assert found == ["arm 'a': control.copies_dtype has no effect in a run, which trains in fp32: leave it out"]


@pytest.mark.parametrize(
    ("control", "said"),
    [
        ({"interpolation": "lerp"}, "no copies have gates"),
        ({"alpha": "learned"}, "no copies have gates"),
        ({"structure": "stack"}, "no copies have gates"),
        ({"interpolation": "proj", "divergence": "none"}, "no copies have gates"),  # P is frozen
        ({"interpolation": "proj", "divergence": "mse"}, ""),
        ({"interpolation": "gate"}, ""),
        ({"interpolation": "dlerp"}, ""),
        ({"norm_mix": "learned"}, ""),
    ],
)
def test_a_rate_of_gates_needs_some(control: dict[str, Any], said: str) -> None:
    found = faults({"method": None, "train": {"control": control}}, training={"rates": {"gates": 10}})
    assert bool(found) is bool(said)
    assert said in "".join(found)
    assert "no arm trains copies" in faults({}, training={"rates": {"gates": 10}})[0]


@pytest.mark.parametrize(("every", "steps", "idle"), [(10, 9, True), (10, 10, False), (3, 9, False)])
def test_slow_weights_that_are_never_averaged_are_said(every: int, steps: int, idle: bool) -> None:
    """Not refused: a run is tried with two steps first."""
    forms = {"method": "mer", "options": {"every": every}}, {"average": {"mer": {"every": every}}}
    short, product = ({"name": "a", "learning_rates": [1e-3], **form} for form in forms)
    for arm in (short, product):
        config = parse_config({"name": "x", "arms": [arm], "training": {"steps": steps}})
        said = f"arm a: mer averages nothing, since every={every} is beyond the {steps} steps"
        assert list(notes(config)) == [said] * idle


@pytest.mark.parametrize(
    ("kl", "said"),
    [
        ({"weight": 0.0, "budget": 0.01}, ["arm a: kl has weight 0, so budget has no effect"]),
        ({"weight": 0.0, "budget": 0.01, "top": 5}, ["arm a: kl has weight 0, so top, budget has no effect"]),
        ({"weight": 0.0}, []),
        ({"weight": 0.1, "budget": 0.01}, []),
    ],
)
def test_fields_of_a_loss_that_counts_0_times_are_said(kl: dict[str, Any], said: list[str]) -> None:
    """Not refused: a study may search the weight from 0 on. The factor of a budget multiplies the weight."""
    arm = {"name": "a", "learning_rates": [1e-3], "loss": [{"kl": kl}]}
    assert list(notes(parse_config({"name": "x", "arms": [arm]}))) == said


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (
            {"divergence": "cosine", "divergence_weight": 0, "margin": 0.2},
            ["is 0, so divergence, margin has no effect"],
        ),
        ({"divergence_weight": 0}, []),
        ({"divergence": "none"}, []),
        ({"divergence": "cosine", "margin": 0.2}, []),
        ({"interpolation": "proj"}, []),
        ({"interpolation": "proj", "divergence": "none"}, ["so offset of control.interpolation proj stays as at the"]),
        ({"interpolation": "proj", "divergence": "attention"}, ["offset of control.interpolation proj"]),
        ({"interpolation": "proj", "divergence_weight": 0}, ["offset of control.interpolation proj"]),
    ],
)
def test_fields_of_a_divergence_that_does_not_count_are_said(control: dict[str, Any], said: list[str]) -> None:
    """Not refused: a study may search the weight from 0 on, or gates with and without a divergence."""
    for form in ({"method": "control", "control": control}, {"train": {"control": control}}):
        arm = {"name": "a", "learning_rates": [1e-3], **form}
        found = list(notes(parse_config({"name": "x", "arms": [arm]})))
        assert len(found) == len(said)
        assert all(part in line for part, line in zip(said, found, strict=True))


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"min_lr_ratio": 0.3}, []),
        ({"min_lr_ratio": 0.3, "anneal_share": 0.0}, ["training.min_lr_ratio has no effect: anneal_share has no step"]),
        ({"anneal_share": 0.0}, []),
        ({"cooldown_share": 0.02}, ["straight to constant_lr_ratio=0.5 of the learning rate, which is never reached"]),
        ({"cooldown_share": 0.0, "constant_lr_ratio": 1.0}, []),
    ],
)
def test_phases_of_a_schedule_that_have_no_step_are_said(training: dict[str, Any], said: list[str]) -> None:
    """Not refused: a run is tried with two steps first."""
    given = {"schedule": "infinite", "steps": 20, "warmup_steps": 4, **training}
    config = parse_config({"name": "x", "arms": [ARM], "training": given})
    found = list(notes(config))
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))
    factors = [infinite_factor(step, config.training) for step in range(21)]
    assert (max(factors) < 1) is any("never reached" in line for line in said)


@pytest.mark.parametrize(("steps", "part"), [(10, "9/10"), (1, "0/1"), (5, "4/5")])  # 5 is the default
def test_a_warm_up_of_all_steps_is_said(steps: int, part: str) -> None:
    def said(warmup: int) -> list[str]:
        training = {"steps": steps, "warmup_steps": warmup}
        return list(notes(parse_config({"name": "x", "arms": [ARM], "training": training})))

    assert said(steps)[0].startswith(f"training.warmup_steps={steps} are all the steps: the last has {part} of the")
    assert not said(steps - 1)


@pytest.mark.parametrize(
    ("training", "every", "said"),
    [
        ({"steps": 4}, 20, ["in 3 of the 4 steps"]),
        ({"steps": 4, "warmup_steps": 5}, 20, ["in 3 of the 4 steps, all but the last: so the default, 5, is cut"]),
        ({"steps": 4, "warmup_steps": 2}, 20, []),
        ({"steps": 1}, 20, []),  # which has the whole rate
        ({"steps": 30}, 31, ["evaluation.every=31 is beyond the 30 steps: the end alone is measured"]),
        ({"steps": 30}, 30, []),
        ({"steps": 30}, None, []),
        ({"steps": 30, "save_every": 30}, 30, ["training.save_every=30 leaves no checkpoint in 30 steps"]),
        ({"steps": 30, "save_every": 29}, 30, []),
        (
            {"batch_size": 4, "micro_batch": 3},
            20,
            ["does not divide the 4 rows of a batch: they are cut into 2 micro-"],
        ),
        (
            {"batch_size": 7, "micro_batch": 6},
            20,
            ["=6 does not divide the 7 rows of a batch: they are cut into 7 mic"],
        ),
        ({"batch_size": 4, "micro_batch": 2}, 20, []),
        ({"batch_size": 4, "micro_batch": 8}, 20, []),  # the most that a device sees
    ],
)
def test_numbers_that_the_steps_or_rows_do_not_reach_are_said(
    training: dict[str, Any], every: int | None, said: list[str]
) -> None:
    """Not refused: a run is tried with two steps first, and a micro-batch is the most rows at once."""
    config = parse_config({"name": "x", "arms": [ARM], "training": training, "evaluation": {"every": every}})
    found = list(notes(config))
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))


def test_a_micro_batch_that_does_not_divide_the_rows_of_a_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    training = {"batch_size": 12, "micro_batch": 4}  # which divides 12, but not the 6 of each
    (line,) = notes(parse_config({"name": "x", "arms": [ARM], "training": training}))
    assert line.endswith("does not divide the 6 rows of a device: they are cut into 2 micro-batches of 3")


def test_the_end_of_a_stage_is_measured_whatever_every_is() -> None:
    stages = [{"source": "reasoning_gym", "name": name} for name in ("spell_backward", "basic_arithmetic")]
    data, evaluation = {"new": stages, "order": "sequential"}, {"every": 50}
    (line,) = notes(
        parse_config({"name": "x", "arms": [ARM], "data": data, "evaluation": evaluation, "training": {"steps": 40}})
    )
    assert line == "evaluation.every=50 is beyond the 40 steps: the end of each stage alone is measured"


@pytest.mark.parametrize(("alpha", "lines"), [(5.0, 1), (0, 0), (None, 0)])
def test_noise_that_depends_on_how_a_step_is_cut_is_said(alpha: float | None, lines: int) -> None:
    """That of transformers is within alpha / sqrt(tokens * width) of a pass as it is padded."""
    arguments = {} if alpha is None else {"neftune_noise_alpha": alpha}
    said = list(notes(parse_config({"name": "x", "arms": [ARM], "training": {"arguments": arguments}})))
    assert [line.startswith("training.arguments: the noise of neftune_noise_alpha") for line in said] == [True] * lines


def test_fields_of_sources_that_what_is_read_does_not_have(tmp_path: Path) -> None:
    """A separator splits texts alone, also in a folder, and a folder has no revisions."""
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / name).write_text("")
    split = {"source": "file", "path": str(tmp_path), "separator": "---"}
    (fault,) = faults({}, data={"new": split})
    assert fault.startswith(f"data: source {tmp_path.stem}: separator splits text files")
    (tmp_path / "c.txt").write_text("one---two")
    assert not faults({}, data={"new": split})
    assert not faults({}, data={"new": {**split, "path": str(tmp_path / "not here")}})
    hub = {"source": "huggingface", "name": str(tmp_path)}
    assert not faults({}, data={"new": hub})
    assert not faults({}, data={"new": {**hub, "name": "gsm8k", "revision": "abc"}})
    (fault,) = faults({}, data={"new": {**hub, "revision": "abc"}})
    assert f"revision has no effect: it is one of the Hub, and {tmp_path} is a folder" in fault


@pytest.mark.parametrize(
    ("choose", "idle"), [({"of": 800}, True), ({}, False), ({"by": "loss", "of": 800}, False), ({"keep": 50}, False)]
)
def test_a_random_choice_does_not_depend_on_how_many_there_are(choose: dict[str, Any], idle: bool) -> None:
    data = {"replay": 0.1, "old": {"source": "self"}, "choose": choose}
    said = list(notes(parse_config({"name": "x", "arms": [ARM], "data": data})))
    assert [line.startswith("data.choose: of has no effect with by: random") for line in said] == [True] * idle


@pytest.mark.parametrize(
    ("data", "idle"),
    [
        ({}, True),
        ({"new": {"source": "file", "path": "x.jsonl", "text": "t"}, "regime": "cpt"}, True),
        ({"new": {"source": "file", "path": "x.jsonl"}}, False),
        ({"old": {"source": "huggingface", "name": "x"}, "replay": 0.1}, False),
        ({"system": "Be brief."}, False),
    ],
)
def test_a_system_turn_that_is_merged_is_there(data: dict[str, Any], idle: bool) -> None:
    said = list(notes(parse_config({"name": "x", "arms": [ARM], "data": {"merge_system": True, **data}})))
    line = "data.merge_system has no effect, since no source has system turns: give data.system, or leave it out"
    assert [one for one in said if "merge_system" in one] == [line] * idle


def test_old_text_is_not_measured() -> None:
    old = {"source": "file", "path": "x.jsonl", "grader": "contains", "test": {"share": 0.5}}
    said = [
        f"data.old: source x: {name} has no effect: the sources of data.new are measured" for name in ("test", "grader")
    ]
    assert faults({"replay": 0.1}, data={"old": old}) == said
    assert faults({"replay": 0.1}, data={"old": {**OLD["old"], "test": {"seed": 1}}})[0].endswith("are measured")
    assert not faults({"replay": 0.1}, data={"old": {**old, "grader": "choice", "test": None}})


def test_a_grader_that_nothing_asks() -> None:
    """That of multiple choice decides what is learned: a letter becomes the text of its option."""
    new, kept = {"source": "file", "path": "x.jsonl"}, {"evaluation": {"suites": ["kept"]}}
    said = ["data.new: source x: grader has no effect: add suite new, or leave it out"]
    assert faults({}, data={"new": {**new, "grader": "contains"}}, **kept) == said
    assert not faults({}, data={"new": {**new, "grader": "contains"}})
    assert not faults({}, data={"new": {**new, "grader": "choice"}}, **kept)
    assert not faults({}, data={"new": new}, **kept)


def test_a_config_that_a_run_wrote_has_the_same_faults() -> None:
    """All defaults are in it, also those of fields without effect."""
    config = parse_config({"name": "x", "arms": [ARM, {**ARM, "name": "b", "method": "stack"}]})
    assert not unused_fields(parse_config(config.to_dict()))


def test_all_faults_come_at_once() -> None:
    values = {"name": "x", "arms": [ARM], "data": OLD, "training": {"min_lr_ratio": 0.5}}
    with pytest.raises(ConfigError, match=r"(?s)data\.old is read by no arm.*training\.min_lr_ratio has no effect"):
        check_fields(parse_config(values))


def test_suites_that_are_set_leave_the_settings_that_the_file_has_for_others(tmp_path: Path) -> None:
    suites = {"new": {}, "kept": {"items": 8}, "drift": {"replies": 8}, "lm_eval": {"kept": ["mmlu"]}}
    file = tmp_path / "a.yaml"
    file.write_text(dump_yaml({"name": "x", "arms": [ARM], "evaluation": {"suites": suites}}))
    given: dict[str, Any] = {"evaluation.suites": ["new", "kept"], "evaluation.kept_items": 4}
    config = load_config(file, given)
    said = "evaluation: the settings of drift have no effect, since suites does not name them"
    assert list(notes(config)) == [said]
    assert config.evaluation.suites == ("new", "kept")
    assert config.evaluation.settings("kept").items == 4
    assert parse_config(config.to_dict()).digest() == config.digest()
    with pytest.raises(ConfigError, match=r"the settings of instructions have no effect: add instructions to suites"):
        load_config(file, {"evaluation.instruction_items": 4})
    for key, value in (("evaluation.replies", 4), ("evaluation.suites.drift.replies", 4), ("evaluation.lm_eval", {})):
        both = {key: value, **given}
        with pytest.raises(ConfigError, match=r"the settings of (drift|lm_eval) have no effect: add .* to suites"):
            load_config(file, both)


def test_what_is_held_out_for_a_suite_that_is_not_measured_is_said() -> None:
    def said(*suites: str, **source: Any) -> list[str]:
        data = {"new": {"source": "file", "path": "a.jsonl", **source} if source.get("source") is None else source}
        return list(notes(parse_config({"name": "x", "arms": [ARM], "data": data, "evaluation": {"suites": suites}})))

    assert said("kept")[0].startswith("a: 128 examples are held out (evaluation.new_items), though suite new is not me")
    assert not said("new", "kept")
    assert not said("kept", test="b.jsonl")
    assert not said("kept", source="reasoning_gym")  # which has no end


@pytest.mark.parametrize(("suite", "fault"), [("drift", True), ("text", True), ("kept", False), ("new", False)])
def test_the_best_step_needs_a_gain_or_a_retention(suite: str, fault: bool) -> None:
    found = faults({}, training={"keep": "best"}, evaluation={"suites": [suite]})
    assert bool(found) is fault
    assert "training.keep best has no gain or retention" in "".join(found) or not fault
