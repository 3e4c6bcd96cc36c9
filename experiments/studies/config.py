"""The typed YAML of a study: a base experiment, the search space, the objectives, the budget."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from experiments.common.hashing import json_digest
from experiments.common.paths import FOLDER_NAME, LONGEST_NAME, check_file_name
from experiments.common.section import MAX_SEED, Section, nearest
from experiments.common.yaml_values import get_field
from experiments.studies.space import DIMENSIONS, Dimension, Scalar, Times, grid, overrides

if TYPE_CHECKING:
    from experiments.config import ExperimentConfig

SAMPLERS = ("grid", "random", "tpe", "nsga2", "gp")
PRUNERS = ("median", "percentile", "halving", "hyperband", "threshold")
NOT_IDENTITY = {"question", "budget", "storage", "retries", "failures", "heartbeat", "posthoc", "report"}


class Objective(Section):
    """A figure to optimise, averaged over seeds: of the scorecard, of the cost (`cost/seconds`), or a sum of figures
    (`gain + retention`)."""

    figure: str = Field(description="a figure of the scorecard, `cost/NAME`, or a sum with `+`; averaged over seeds")
    direction: Literal["maximize", "minimize"] = Field(description="whether high or low values are good")

    @property
    def better(self) -> str:
        """Return the direction in words, for the axis of a picture."""
        return "higher is better" if self.direction == "maximize" else "lower is better"


class Constraint(Section):
    """A bound on a figure: a trial is feasible if min <= figure <= max."""

    figure: str = Field(description="a figure of the scorecard, or `cost/NAME`")
    min: float | None = Field(None, description="feasible from this value on")
    max: float | None = Field(None, description="feasible up to this value")

    @model_validator(mode="after")
    def _bound(self) -> Constraint:
        if self.min is None and self.max is None:
            raise ValueError(f"constraint on {self.figure!r} needs min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"constraint on {self.figure!r}: min={self.min:g} is above max={self.max:g}")
        return self


class Named(Section):
    """A sampler or pruner: its name, and the arguments of Optuna's class as options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of Optuna's class")


class Sampler(Named):
    """How the next trial's picks are drawn."""

    name: Literal["grid", "random", "tpe", "nsga2", "gp"] = Field("tpe", description="kind of sampler")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of the sampler; grid draws nothing and does not read it")


class Pruner(Named):
    """How a trial is chosen that is stopped before its end."""

    name: Literal["median", "percentile", "halving", "hyperband", "threshold"] = Field(
        "median", description="kind of pruner"
    )


class Budget(Section):
    """The end of a study. A grid needs no budget."""

    trials: int | None = Field(None, ge=1, description="number of trials; retried ones count once")
    hours: float | None = Field(None, gt=0, description="hours of trials, summed over all workers")


class ReportConfig(Section):
    """What the report computes from the trials."""

    select: str | None = Field(None, description="dimension whose best value is chosen per arm, on half of the items")
    paper: Literal["table5"] | None = Field(None, description="table of published figures to compare with")
    law: str | None = Field(None, description="dimension that is the replayed share: fit the mixture law")
    epsilon: float = Field(
        0.05, gt=0, description="nats per token that general text may rise at the critical share of that law"
    )


class Posthoc(Section):
    """An operation on the trained weights of an arm's chosen trial, after the last trial: a row of the report."""

    arm: str = Field(description="name of the arm in the report")
    op: Literal["merge", "wise", "lines", "dial", "dial_depth"] = Field(
        description="what is done to its weights, see control-llm posthoc"
    )
    alpha: float | None = Field(None, ge=0, le=1, description="share of the trained weights or copies")
    name: str = Field("", description="of the new row; default: arm-op-alpha")

    @model_validator(mode="after")
    def _share(self) -> Posthoc:
        if self.op != "merge" and self.alpha is None:
            raise ValueError(
                f"{self.op} of {self.arm!r} needs alpha, the share of the trained weights: for example 0.5"
            )
        return self

    @property
    def label(self) -> str:
        return self.name or f"{self.arm}-{self.op}" + ("" if self.alpha is None else f"-{self.alpha:g}")


class StudyConfig(Section):
    """A whole study."""

    name: str = Field(pattern=FOLDER_NAME, max_length=LONGEST_NAME, description="name of the study")
    question: str = Field("", description="headline of the report")
    base: str | dict[str, Any] = Field(description="a run's YAML by name or path, or its contents")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="dotted keys of the run and their values, for all trials"
    )
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict, description="further overrides, by name")
    search: dict[str, Dimension] = Field(min_length=1, description="dotted key of the config -> dimension")
    objectives: tuple[Objective, ...] = Field(
        min_length=1, description="what is optimised; several give a Pareto front"
    )
    constraints: tuple[Constraint, ...] = Field((), description="limits that make a trial feasible")
    sampler: Sampler = Field(Sampler(), description="how trials are chosen; the name alone is enough")
    pruner: Pruner | None = Field(None, description="stops bad trials early; needs a single objective")
    kl_budget: float | None = Field(
        None, gt=0, description="nats per token; a trial whose KL to the base is higher at an evaluation is stopped"
    )
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field(
        (0,),
        min_length=1,
        description="each seed is a run of its own; the trial is their mean; default: the base's seed",
    )
    budget: Budget = Field(Budget(), description="when to stop; a grid needs none")
    retries: int = Field(2, ge=0, description="how often a trial is continued after its process died")
    failures: int = Field(3, ge=1, description="number of failed trials in a row that stops the study")
    heartbeat: int = Field(
        60, ge=1, le=86_400, description="seconds; a worker counts as dead after twice as long without a sign of life"
    )
    storage: str | None = Field(
        None, min_length=1, description="a database URL; default: optuna.db in the root of the results"
    )
    posthoc: tuple[Posthoc, ...] = Field((), description="operations after the last trial")
    report: ReportConfig = Field(ReportConfig(), description="how the report is made")

    @field_validator("sampler", "pruner", mode="before")
    @classmethod
    def _name(cls, value: Any, info: Any) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        known = SAMPLERS if info.field_name == "sampler" else PRUNERS
        if isinstance(value, dict) and value.get("name", known[0]) not in known:
            raise ValueError(f"unknown {info.field_name} {value['name']!r}: {nearest(str(value['name']), known)}")
        return value

    @field_validator("search", mode="before")
    @classmethod
    def _kinds(cls, value: Any) -> Any:
        for key, dimension in value.items() if isinstance(value, dict) else ():
            kind = dimension.get("kind") if isinstance(dimension, dict) else None
            if kind not in DIMENSIONS:
                raise ValueError(f"{key}: unknown kind {kind!r}: {nearest(str(kind), DIMENSIONS)}")
        return value

    @field_validator("profiles")
    @classmethod
    def _profiles(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            check_file_name(name)
        return value

    @model_validator(mode="after")
    def _fits(self) -> StudyConfig:
        if self.pruner and len(self.objectives) > 1:
            raise ValueError("pruning needs a single objective: leave out pruner, or all objectives but one")
        late = [part for part in parts(self.objectives[0].figure) if part.startswith(("stream_", "cost/"))]
        if self.pruner and late:
            raise ValueError(f"pruning needs a figure of every evaluation, but {late[0]!r} is known only at the end")
        if self.sampler.name == "grid":
            grid(self.search)
        elif self.budget.trials is None and self.budget.hours is None:
            raise ValueError(f"sampler {self.sampler.name!r} never ends: give budget.trials or budget.hours")
        self._own_fields()
        for field in ("select", "law"):
            key = getattr(self.report, field)
            if key is not None and key not in self.search:
                raise ValueError(f"report.{field} {key!r} is not searched: {nearest(key, self.search)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, but got {list(self.seeds)}")
        return self

    def _own_fields(self) -> None:
        """Raise ValueError for a field that two dimensions set, or that the study itself sets."""
        paths = [getattr(d, "path", None) or key for key, d in self.search.items() if d.kind != "arms"]
        twice = [path for path in paths if paths.count(path) > 1]
        if twice:
            raise ValueError(f"search: two dimensions set {twice[0]!r}: leave one out")
        for path in paths:
            if above := next((other for other in paths if path.startswith(f"{other}.")), None):
                raise ValueError(f"search: {above!r} sets {path!r} too: search its fields one by one, or leave one out")
            if path in self.overrides:
                raise ValueError(f"{path!r} is searched: leave it out of overrides")
        figures = [objective.figure for objective in self.objectives]
        if twice := [figure for figure in figures if figures.count(figure) > 1]:
            raise ValueError(f"objectives: {twice[0]!r} is there more than once: leave one out")
        within = [key for d in self.search.values() if d.kind == "arms" for arm in d.arms.values() for key in arm]
        changed = {*paths, *within, *self.overrides, *(key for p in self.profiles.values() for key in p)}
        if "seed" in changed:
            raise ValueError("seed is not searched or overridden: list the seeds of each trial under seeds")
        if "name" in changed:
            raise ValueError("name is not searched or overridden: runs are named by study, trial and seed")

    def values(self, picks: dict[str, Scalar]) -> dict[str, Any]:
        """Return the plain config of a trial with these picks."""
        from experiments.config import load_config, set_value  # loads torch; `status` needs none

        def new(key: str, value: Any) -> Any:
            return value.of(get_field(values, key), key) if isinstance(value, Times) else copy.deepcopy(value)

        values = copy.deepcopy(self.base) if isinstance(self.base, dict) else load_config(self.base).to_dict()
        values["name"] = self.name
        for key, value in (*self.overrides.items(), *overrides(self.search, picks).items()):
            set_value(values, key, new(key, value))
        return values

    def run_config(self, picks: dict[str, Scalar], number: int, seed: int) -> ExperimentConfig:
        """Return the experiment of one trial and seed. Its name contains the number: each trial has its own folders."""
        from experiments.config import parse_config

        several = f"-seed{seed}" if len(self.seeds) > 1 else ""
        values = {**self.values(picks), "name": f"{self.name}-{number:03d}{several}", "seed": seed}
        return parse_config(values, f"trial {number} of {self.name}")

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def identity(self) -> str:
        """Return hex digits that change whenever trials would no longer be comparable."""
        from experiments.evaluation.flat_keys import of_results  # loads torch

        kept = {key: value for key, value in self.to_dict().items() if key not in NOT_IDENTITY}
        kept["base"] = of_results(kept["base"])
        if self.kl_budget is None:  # as studies had it before there was this field
            del kept["kl_budget"]
        return json_digest(kept)[:12]


def parts(figure: str) -> list[str]:
    """Return the names of a sum of figures: `gain + retention` -> ["gain", "retention"]."""
    return [part.strip() for part in figure.split("+")]
