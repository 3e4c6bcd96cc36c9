"""The typed YAML of an experiment: every field, its default and its check.

Each section is next to the code that reads it. Unknown keys fail with the nearest key; all faults are reported at
once; a config is frozen once read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from experiments.common.errors import ConfigError
from experiments.common.files import read_note
from experiments.common.hashing import json_digest
from experiments.common.owner import CONFIG
from experiments.common.owner import SOURCES as OF_RUN
from experiments.common.paths import FOLDER_NAME, LONGEST_NAME, SHIPPED, name_on_disk
from experiments.common.section import MAX_SEED, Place, Section, fault_lines, later_field
from experiments.common.yaml_values import read_yaml, set_field
from experiments.data.config import DataConfig
from experiments.data.graders import found_next_to
from experiments.data.sources import SOURCES
from experiments.evaluation.config import EvaluationConfig
from experiments.evaluation.flat_keys import FLAT, of_results, set_key
from experiments.evaluation.suites import SUITES
from experiments.methods import PARTS
from experiments.methods.config import ArmConfig
from experiments.methods.tuning import Control
from experiments.training.config import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONFIG_AGAIN = (
    "The run wrote this file: bring it back, or delete it and run the same config again, which writes it anew"
)


NO_MASKS = {  # beginnings of transformers' names for attention -> why the bench cannot use it
    "flash": "takes no mask of pairs of tokens",
    "kernels-community/": "takes no mask of pairs of tokens",
    "flex": "takes masks of a kind of its own",
}


class ExperimentConfig(Section):
    """A whole experiment: one base, one task, the same data in the same order for every arm."""

    name: str = Field(pattern=FOLDER_NAME, max_length=LONGEST_NAME, description="name of the run and of its folder")
    base_model: str = Field(
        "smollm2-135m-instruct", min_length=1, description="the shipped model, a Hugging Face name, or a local folder"
    )
    grows: bool = later_field(
        False, description="arms may be added later: the run's folder is named without them and keeps those it has"
    )
    trust_remote_code: bool = later_field(False, description="run the Python files that the base model brings along")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="arithmetic of the run; auto: bf16 where the machine computes it fast"
    )
    quantised: Literal["8bit", "4bit"] | None = later_field(
        None,
        description="hold the frozen base's matrices in 8 bit (torchao) or 4 bit (bitsandbytes)",
    )
    attention: Literal["sdpa", "eager"] | None = later_field(
        None,
        description="how attention is computed: sdpa by PyTorch's kernels, on GPUs those of flash attention (the "
        "default where the model has it); eager by products, which divergence attention needs",
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of data order, held-out items, adapters and resampling")
    data: DataConfig = Field(DataConfig(), description="what is learned and replayed")
    training: TrainingConfig = Field(TrainingConfig(), description="steps, batches, schedule: the same for all arms")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="what is measured, and when")
    arms: tuple[ArmConfig, ...] = Field(min_length=1, description="the ways to train")

    @field_validator("attention", mode="before")
    @classmethod
    def _masked(cls, value: Any) -> Any:
        """Say why transformers' other ways to compute attention cannot be chosen."""
        for start, why in NO_MASKS.items():
            if isinstance(value, str) and value.removeprefix("paged|").startswith(start):
                raise ValueError(
                    f"{value} {why}, and packed documents are kept apart and kept tasks are read by such masks: take "
                    "sdpa, which uses PyTorch's kernels of flash attention on GPUs, or leave it out"
                )
        return value

    @field_validator("arms")
    @classmethod
    def _distinct(cls, arms: tuple[ArmConfig, ...]) -> tuple[ArmConfig, ...]:
        names = [name_on_disk(arm.name) for arm in arms]
        twice = sorted({arm.name for arm in arms if names.count(name_on_disk(arm.name)) > 1})
        if twice:
            raise ValueError(f"arm names must differ, in more than case, but one is there twice: {', '.join(twice)}")
        folders = [name_on_disk(f"{arm.name}-{rate:g}") for arm in arms for rate in arm.learning_rates]
        if twice := [name for name in dict.fromkeys(folders) if folders.count(name) > 1]:
            raise ValueError(f"two arms would share the folder {twice[0]}, their name and rate: give one another name")
        return arms

    @model_validator(mode="after")
    def _stages(self) -> ExperimentConfig:
        self.data.stage_ends(self.training.steps)
        return self

    def load_base(self, narrow: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the base model and its tokenizer as all parts of the experiment use them. Raises ModelError.

        narrow: see `experiments.models.base.load_base`; for a model that computes in bf16 only.
        """
        from experiments.models.base import load_base  # loads torch, which most commands do not need

        options: dict[str, Any] = {**self.data.chat_settings, "attention": self.attention}
        if self.quantised:
            from experiments.models.precision import Precision

            options |= {"quantised": self.quantised, "compute": Precision(self.precision).name}
        return load_base(self.base_model, remote_code=self.trust_remote_code, narrow=narrow, **options)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer alone, as `load_base` does. Raises ModelError."""
        from experiments.models.base import load_tokenizer

        return load_tokenizer(self.base_model, remote_code=self.trust_remote_code, **self.data.chat_settings)

    @model_validator(mode="after")
    def _of_frozen(self) -> ExperimentConfig:
        """Refuse what needs the floats of a quantised base."""
        if self.quantised is None:
            return self
        for arm in self.arms:
            tuning = arm.build().tuning
            if not isinstance(tuning, Control) and not tuning.adapts:
                raise ValueError(
                    f"quantised={self.quantised}: arm {arm.name!r} ({arm.method_name}) trains the base's own matrices, "
                    "which have no floats then: take control, stack or lora, or leave quantised out"
                )
        if "alignment" in self.evaluation.suites:
            raise ValueError(
                f"quantised={self.quantised}: suite alignment compares weights with the base's floats: leave it out"
            )
        return self

    @property
    def evaluation_steps(self) -> list[int]:
        """The steps after which all suites are measured: every `evaluation.every` steps, and each stage's last."""
        steps = self.training.steps
        every = self.evaluation.every or steps
        return sorted({*range(every, steps + 1, every), *self.data.stage_ends(steps)})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they are written to YAML and logged."""
        values = self.model_dump(mode="json", exclude={"arms"})
        values["arms"] = [arm.to_dict() for arm in self.arms]
        return values

    def to_flat(self) -> dict[str, Any]:
        """Return the same values with the flat keys of earlier versions in `evaluation`: digests are made of them."""
        return self.to_dict() | {"evaluation": self.evaluation.to_flat()}

    def digest(self) -> str:
        """Return eight hex digits that change whenever a result could. Those of a run that grows leave out the arms."""
        values = of_results(self.to_flat()) | {"training": self.training.identity()}
        if self.grows:
            del values["arms"]
        return json_digest(values)[:8]


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> ExperimentConfig:
    """Read a YAML file, or a shipped one by name (`quickstart`). Raises ConfigError.

    overrides: dotted keys (`training.steps`) and the values they get instead. Settings of suites that are not measured
    are refused next to them, see `EvaluationConfig`.
    """
    path, values = read_yaml(path, SHIPPED, "config file")
    for key, value in (overrides or {}).items():
        set_value(values, key, value)
    config = parse_config(found_next_to(values, path.parent), source=str(path))
    if overrides:
        config.evaluation.check_settings(overrides)
    return config


def run_config(folder: Path) -> ExperimentConfig:
    """Read the config that a run keeps in its folder. Raises ConfigError, with the next step, also if it was edited."""
    file = folder / "config.yaml"
    try:
        config = load_config(file)
    except ConfigError as error:
        raise ConfigError(f"{error}\n{CONFIG_AGAIN}") from error
    check_unedited(folder, config)
    return config


def check_unedited(folder: Path, config: ExperimentConfig) -> None:
    """Raise ConfigError if the config of a run's folder has other settings than the run."""
    own = config.digest()
    if read_note(folder / OF_RUN).get(CONFIG, own) != own:
        raise ConfigError(
            f"{folder / 'config.yaml'} was edited: it has other settings than {folder.name} ran with.\n{CONFIG_AGAIN}"
        )


def set_value(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one field of a config's plain values by its dotted key; settings of suites also by their flat keys."""
    section, _, key = dotted.partition(".")
    evaluation = values.get("evaluation") or {}
    if section == "evaluation" and key and isinstance(evaluation, dict):
        values["evaluation"] = set_key(evaluation, key, value)
    else:
        set_field(values, dotted, value)


def parse_config(values: dict[str, Any], source: str = "config") -> ExperimentConfig:
    """Check plain values. Raises ConfigError with every fault, its place and, for a typo, the nearest key."""
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}:\n{fault_lines(error, _keys_at)}") from None


def _keys_at(loc: Place) -> list[str]:
    """The declared keys of the section that a fault's location points into."""
    section: Any = ExperimentConfig
    named: dict[str, Any] = {**SOURCES, **PARTS, **{name: suite.Settings for name, suite in SUITES.items()}}
    for part in loc:
        if part in named:
            section = named[str(part)]
        elif isinstance(part, str) and part in section.model_fields:
            section = _section_in(section.model_fields[part].annotation) or section
    return [*section.model_fields, *(FLAT if section is EvaluationConfig else ())]


def _section_in(annotation: Any) -> Any:
    """Return the first section in a type, as in tuple[str | KeptFile, ...]; None if there is none."""
    inner = (annotation,) if hasattr(annotation, "model_fields") else map(_section_in, get_args(annotation))
    return next(filter(None, inner), None)
