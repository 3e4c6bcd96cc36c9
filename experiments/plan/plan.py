"""Plan a run: what each arm needs on a device, the largest micro-batch that fits, and what to change if none does."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.common.errors import ConfigError, ModelError
from experiments.config import ExperimentConfig
from experiments.methods.config import ArmConfig
from experiments.models.precision import Precision
from experiments.plan.accelerators import Device, here
from experiments.plan.launches import arm_faults, launch_faults
from experiments.plan.memory import Setup, Sharding, disk, mean_state, stages, state_bytes, training
from experiments.plan.meter import Pass, trace
from experiments.plan.shape import Counts, build
from experiments.training.processes import Processes

CHANGES = ("micro_batch: 1", "checkpointing: all", "arguments: {optim: adamw_8bit}")  # tried in this order, added up
MOVED = 28  # bytes that AdamW reads and writes for each trained parameter


@dataclass(frozen=True)
class ArmPlan:
    """What one arm needs. parts, stages, disk: bytes by name. flops: of a step on all devices.

    micro_batch: the most rows of a device that fit, 0 if none do. change: what makes it fit if it does not, or None.
    """

    name: str
    counts: Counts
    setup: Setup
    parts: dict[str, float]
    stages: dict[str, float]
    disk: dict[str, float]
    flops: float
    tokens: int
    micro_batch: int
    change: str | None = None
    unknown: list[str] = field(default_factory=list)

    @property
    def peak(self) -> float:
        return sum(self.parts.values())

    def seconds(self, device: Device, utilisation: float) -> float | None:
        """Return the seconds of a step, or None if the device's speed is not known."""
        if device.flops is None or device.bandwidth is None:
            return None
        moved = MOVED * self.counts.trained / (self.setup.devices if self.setup.sharding != "none" else 1)
        return self.flops / self.setup.devices / (utilisation * device.flops) + moved / device.bandwidth


@dataclass(frozen=True)
class Plan:
    """The plan of a run on a device. failed: arms that cannot be planned, with the reason."""

    config: ExperimentConfig
    device: Device
    arms: list[ArmPlan]
    failed: dict[str, str]
    rates: dict[str, int]  # how many learning rates each arm has

    @property
    def too_large(self) -> list[ArmPlan]:
        """The arms whose training does not fit."""
        return [arm for arm in self.arms if arm.peak > self.device.memory]


def plan_run(
    config: ExperimentConfig,
    device: Device | None = None,
    devices: int = 1,
    sharding: Sharding = "none",
    length: int | None = None,
) -> Plan:
    """Plan every arm of a config. device: default: this machine's. length: tokens of a row, if not `data.length`.

    Raises ConfigError if the number of devices does not divide `training.batch_size`, and for what no arm can do with
    this sharding, ModelError without the base.
    """
    device, arms, failed = device or here(), [], {}
    if config.precision == "fp32":
        device = replace(device, flops=None)  # its speed is that of bf16, up to 15 times the one of fp32
    Processes(devices).cut(config.training)
    if faults := [*launch_faults(config, sharding, _precision(config, device).bf16)]:
        raise ConfigError("\n".join(faults))
    for arm in config.arms:
        if faults := [*arm_faults(arm, config, sharding, devices)]:
            failed[arm.name] = "; ".join(faults)
            continue
        try:
            arms.append(_Planner(config, arm, device, devices, sharding, length or config.data.length).plan())
        except ConfigError as error:  # of this arm's method: the others have plans
            failed[arm.name] = str(error)
        except ModelError:
            raise
        except Exception as error:  # of transformers and PEFT, for models and methods that they cannot build so
            failed[arm.name] = f"{type(error).__name__}: {error}"
    return Plan(config, device, arms, failed, {arm.name: len(arm.learning_rates) for arm in config.arms})


def _precision(config: ExperimentConfig, device: Device) -> Precision:
    return Precision("bf16" if config.precision == "auto" and device.bf16 else config.precision)


class _Planner:
    """Trace passes of one arm as they are needed, each once."""

    def __init__(
        self, config: ExperimentConfig, arm: ArmConfig, device: Device, devices: int, sharding: Sharding, length: int
    ) -> None:
        self.config, self.arm, self.device, self.length = config, arm, device, length
        self.training = config.training
        self.precision = _precision(config, device)
        rows, micro_batches = Processes(devices).cut(config.training)
        self.shape = build(config, arm, self.precision)
        state = mean_state(self.shape, config.training.arguments)
        self.setup = Setup(rows, micro_batches, length, state, devices, sharding)
        self.own = rows * micro_batches
        self.padded = not config.data.packs
        self.passes: dict[tuple[int, str], Pass] = {}

    def plan(self) -> ArmPlan:
        how = self.training.checkpointing
        one = self._pass(self.setup.rows, how)
        parts = training(self.shape, one, self.setup)
        step = sum(parts.values())
        fits = step <= self.device.memory
        return ArmPlan(
            self.arm.name,
            self.shape.counts,
            self.setup,
            parts,
            stages(self.shape, step, parts, self.setup),
            disk(self.shape, self.setup, self.training),
            float(one.flops * self.setup.micro_batches * self.setup.devices),
            self.own * self.setup.devices * self.length,
            self._largest(how, self.setup),
            None if fits else self._change(),
            self.shape.unknown,
        )

    def _pass(self, rows: int, how: str) -> Pass:
        if (rows, how) not in self.passes:
            shape = build(self.config, self.arm, self.precision)
            self.passes[rows, how] = trace(shape, rows, self.length, self.padded, how)
        return self.passes[rows, how]

    def _needs(self, rows: int, how: str, setup: Setup) -> float:
        """Bytes of a step in micro-batches of so many rows. All but two sizes follow from a straight line."""
        setup = replace(setup, rows=rows, micro_batches=-(-self.own // rows))
        if rows <= 2 or (rows, how) in self.passes:
            return sum(training(self.shape, self._pass(rows, how), setup).values())
        first, second = (self._pass(n, how) for n in (1, 2))
        line = {key: value + (rows - 1) * (vars(second)[key] - value) for key, value in vars(first).items()}
        return sum(training(self.shape, Pass(**line), setup).values())

    def _largest(self, how: str, setup: Setup) -> int:
        """The most rows of a micro-batch that fit and divide a device's rows of a step; 0 if one does not."""
        least = self.own if self.shape.method.reads_pass else 1  # which no micro-batch may cut
        sizes = [n for n in range(self.own, least - 1, -1) if self.own % n == 0]
        return next((n for n in sizes if self._needs(n, how, setup) <= self.device.memory), 0)

    def _change(self) -> str | None:
        """Say the first of CHANGES, alone or with those before it, that makes the step fit; None if nothing does."""
        for count in range(1, len(CHANGES) + 1):
            how: Any = "all" if count > 1 else self.training.checkpointing
            setup = self.setup if count < 3 else replace(self.setup, state=min(self.setup.state, state_bytes("8bit")))
            if largest := self._largest(how, setup):
                first = f"{self._rows()}micro_batch: {largest}"
                return f"training: {{{', '.join([first, *CHANGES[1:count]])}}}"
        for devices in itertools.takewhile(lambda n: self.own * self.setup.devices % n == 0, (2, 4, 8, 16)):
            if self._refused(devices):
                return None
            setup = replace(self.setup, devices=devices, sharding="fsdp")
            if sum(training(self.shape, self._pass(1, "all"), setup).values()) <= self.device.memory:
                first = f"{self._rows()}micro_batch: 1"
                return f"training: {{{first}, checkpointing: all}} and --devices {devices} --sharding fsdp"
        return None

    def _refused(self, devices: int) -> bool:
        """Whether a run of this arm with FSDP is refused."""
        of_all = launch_faults(self.config, "fsdp", self.precision.bf16)
        return any((*of_all, *arm_faults(self.arm, self.config, "fsdp", devices)))

    def _rows(self) -> str:
        """Return the fields that a micro-batch needs if the config makes a step of several batches."""
        training = self.training
        if training.gradient_accumulation == 1:
            return ""
        return f"batch_size: {training.step_rows}, gradient_accumulation: 1, "
