"""Write a plan as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from experiments.plan.plan import ArmPlan, Plan

GB, TB = 1e9, 1e12
HOUR, MINUTE = 3600.0, 60.0


def plan_text(plan: Plan, utilisation: float = 0.4) -> str:
    """Return the plan as lines of text. utilisation: share of the device's FLOPs that a step reaches."""
    lines = [*_head(plan, utilisation)]
    for arm in plan.arms:
        lines += ["", *_arm(arm, plan, utilisation)]
    for name, reason in plan.failed.items():
        lines += ["", f"{name}: cannot be planned ({reason})"]
    return "\n".join([*lines, *(["", *_sums(plan, utilisation)] if plan.arms else [])])


def refusal(plan: Plan) -> str:
    """Return why a run cannot start, with the change that would let it."""
    lines = []
    for arm in plan.too_large:
        parts = ", ".join(f"{name} {_gb(size)}" for name, size in arm.parts.items() if size)
        lines.append(
            f"arm {arm.name!r}: a step needs {_gb(arm.peak)} GB ({parts}) of the {_gb(plan.device.memory)} GB of "
            f"{plan.device.name}: {_way_out(arm)}"
        )
    return "\n".join([*lines, "control-llm plan says more; --force starts it all the same"])


def _head(plan: Plan, utilisation: float) -> Iterator[str]:
    config, training = plan.config, plan.config.training
    speed = "" if plan.device.flops is None else f", {plan.device.flops / TB:.0f} TFLOP/s of which {utilisation:.0%}"
    yield f"{config.name}: {config.base_model} on {plan.device.name}, {_gb(plan.device.memory)} GB{speed}"
    if plan.arms:
        setup = plan.arms[0].setup
        many = f" on each of {setup.devices} devices (sharding: {setup.sharding})" if setup.devices > 1 else ""
        yield (
            f"{training.steps} steps of {training.step_rows} rows of {setup.length} tokens, in micro-batches of "
            f"{setup.rows}{many}"
        )


def _arm(arm: ArmPlan, plan: Plan, utilisation: float) -> Iterator[str]:
    counts, fits = arm.counts, arm.peak <= plan.device.memory
    yield (
        f"{arm.name}: {_billions(counts.total)} parameters, {_billions(counts.trained)} train "
        f"({counts.trained / counts.total:.1%}), {_billions(counts.added)} added"
    )
    yield f"  step, GB     {_sizes(arm.parts)} = {_gb(arm.peak)}{'' if fits else ' DOES NOT FIT'}"
    yield f"  stages, GB   {_sizes(arm.stages)}"
    if over := [name for name, size in arm.stages.items() if size > plan.device.memory and name != "training"]:
        yield f"               may need more than the device has: {', '.join(over)}"
    yield f"  disk, GB     {_sizes(arm.disk)}"
    yield f"  a step       {arm.flops / TB:.3g} TFLOP, {arm.tokens:,} tokens{_speed(arm, plan, utilisation)}"
    if fits:
        yield f"  fits         training.micro_batch up to {arm.micro_batch}{_in_one(plan)}"
    else:
        yield f"  change       {_way_out(arm)}"
    if arm.unknown:
        yield f"  left out     {', '.join(arm.unknown)}"


def _in_one(plan: Plan) -> str:
    """Say how to give a micro-batch where `gradient_accumulation` makes a step of several: both are refused."""
    training = plan.config.training
    if training.gradient_accumulation == 1:
        return ""
    return f", with batch_size {training.step_rows} in place of gradient_accumulation"


def _way_out(arm: ArmPlan) -> str:
    if arm.change:
        return f"it fits with {arm.change}"
    return "nothing here makes it fit: fewer layers or lora train less, a smaller data.length keeps less"


def _speed(arm: ArmPlan, plan: Plan, utilisation: float) -> str:
    seconds = arm.seconds(plan.device, utilisation)
    return "" if seconds is None else f", {seconds:.3g} s, {arm.tokens / seconds:,.0f} tokens/s"


def _sums(plan: Plan, utilisation: float) -> Iterator[str]:
    """Say what all arms at all their rates need together."""
    runs = sum(plan.rates[arm.name] for arm in plan.arms)
    kept = sum(plan.rates[arm.name] * arm.disk["trained"] for arm in plan.arms)
    again = " (and in MLflow, if it is on another disk)" if any(arm.disk["MLflow"] for arm in plan.arms) else ""
    steps = plan.config.training.steps
    flops = sum(plan.rates[arm.name] * arm.flops for arm in plan.arms) * steps
    which = (
        f"all {runs} arms" if not plan.failed else f"the {runs} arms that can be planned, of {sum(plan.rates.values())}"
    )
    yield f"{which}: {flops:.3g} FLOP{_whole_time(plan, utilisation)}, {_gb(kept)} GB on disk at the end{again}"
    if plan.device.flops is None:
        yield (
            "no times: the speeds of GPUs here are those of bf16, and precision is fp32"
            if plan.config.precision == "fp32"
            else "no times: give --gpu, whose speed is known"
        )


def _whole_time(plan: Plan, utilisation: float) -> str:
    seconds = 0.0
    for arm in plan.arms:
        one = arm.seconds(plan.device, utilisation)
        if one is None:
            return ""
        seconds += one * plan.config.training.steps * plan.rates[arm.name]
    unit, name = (HOUR, "h") if seconds > HOUR else (MINUTE, "min")
    return f", {seconds / unit:.3g} {name} of steps (evaluations come on top)"


def _sizes(sizes: Mapping[str, float]) -> str:
    return " | ".join(f"{name} {_gb(size)}" for name, size in sizes.items() if size)


def _gb(size: float) -> str:
    return f"{size / GB:.3g}" if size < GB else f"{size / GB:.1f}"


def _billions(count: int) -> str:
    return f"{count / 1e9:.3f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
