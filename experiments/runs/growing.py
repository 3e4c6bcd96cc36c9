"""Add arms to a run that grows (`grows: true`): its folder stays, and the arms that it has begun stay in its config.

An arm is known by its name. Its settings cannot change once it has begun; another learning rate is one more folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.common.errors import ConfigError
from experiments.common.paths import name_on_disk
from experiments.config import ExperimentConfig, run_config
from experiments.methods.config import ArmConfig, check_rates


def with_begun_arms(config: ExperimentConfig, folder: Path) -> ExperimentConfig:
    """Return the config with the arms that the run in `folder` has begun, in their order and before the others.

    A config that does not grow comes back as it is. Raises ConfigError if an arm has other settings than the one that
    was begun under its name.
    """
    if not config.grows or not (folder / "config.yaml").is_file():
        return config
    known = [_begun(arm, folder) for arm in run_config(folder).arms]
    begun = {name_on_disk(arm.name): arm for arm in known if arm}
    given = {name_on_disk(arm.name): arm for arm in config.arms}
    changed = [_changed(arm, begun[name], folder) for name, arm in given.items() if name in begun]
    if faults := [text for text in changed if text]:
        raise ConfigError("\n".join(faults))
    arms = [_with_rates(arm, given.get(name)) for name, arm in begun.items()]
    arms += [arm for name, arm in given.items() if name not in begun]
    return config.model_copy(update={"arms": tuple(arms)})


def _begun(arm: ArmConfig, folder: Path) -> ArmConfig | None:
    """Return the arm with the learning rates that have a folder; None if none has."""
    rates = tuple(rate for rate in arm.learning_rates if (folder / "arms" / f"{arm.name}-{rate:g}").is_dir())
    return arm.model_copy(update={"learning_rates": rates}) if rates else None


def _with_rates(arm: ArmConfig, given: ArmConfig | None) -> ArmConfig:
    """Add the learning rates that are new. Raises ConfigError for one that prints as another."""
    new = [rate for rate in (given.learning_rates if given else ()) if rate not in arm.learning_rates]
    try:
        rates = check_rates((*arm.learning_rates, *new))
    except ValueError as error:
        raise ConfigError(f"arm {arm.name!r}: {error}") from error
    return arm.model_copy(update={"learning_rates": rates})


def _changed(arm: ArmConfig, begun: ArmConfig, folder: Path) -> str:
    """Describe the settings of an arm that are not those it began with; empty if there are none."""
    new, old = settings_of(arm), settings_of(begun)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not names:
        return ""
    pairs = ", ".join(f"{name}={new.get(name)!r}, which began with {old.get(name)!r}" for name in names)
    return f"arm {arm.name!r}: {pairs} in {folder.name}: give the changed arm a name of its own"


def settings_of(arm: ArmConfig) -> dict[str, Any]:
    """Return the plain values of an arm by dotted key, without its learning rates."""
    values = {key: value for key, value in arm.to_dict().items() if key != "learning_rates"}
    control = values.pop("control", {})
    return values | {f"control.{key}": value for key, value in control.items()}
