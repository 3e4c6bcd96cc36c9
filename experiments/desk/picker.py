"""Choose the arms of a run step by step, from the choices that the config itself has, and run them in one folder.

Each method checks the whole config at once, so a typo is found before anything trains, and prints the YAML of its arm.
The buttons (`experiments.desk.buttons`) call these methods and show the line of Python that each click equals.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ctrl.config import field_choices
from experiments.common.errors import ConfigError
from experiments.common.paths import root_folder
from experiments.common.section import nearest
from experiments.common.yaml_values import dump_yaml
from experiments.config import ExperimentConfig, parse_config, run_config
from experiments.desk import watch
from experiments.desk.live import Follower
from experiments.methods import METHODS
from experiments.reporting.table import Table
from experiments.runs.growing import with_begun_arms
from experiments.runs.run import run_folder
from experiments.runs.unused import check_fields

# the fields of `control` that an ablation turns; the others are set in Python: add("x", margin=0.1)
CONTROL = ("structure", "layers", "interpolation", "alpha", "alpha_start", "divergence", "divergence_weight")
Arm = dict[str, Any]


class Picker:
    """The arms of one run that grows (`grows: true`): add some, run, add more, and run again in the same folder.

    config: base model, data, training and evaluation. root: where results go. own_arms: whether the config's arms are
    the first ones. Arms that an earlier call has begun are there from the start. Raises ConfigError.
    """

    def __init__(self, config: ExperimentConfig, root: str | Path | None = None, own_arms: bool = True) -> None:
        self.root = root_folder(root)
        growing = config.model_copy(update={"grows": True})
        self.folder = run_folder(growing, self.root)
        first = growing if own_arms else growing.model_copy(update={"arms": ()})
        found = with_begun_arms(first, self.folder).arms
        self.arms: dict[str, Arm] = {arm.name: _plain(arm.to_dict()) for arm in found}
        self._rest = {key: value for key, value in growing.to_dict().items() if key != "arms"}

    @property
    def config(self) -> ExperimentConfig:
        """The config with the arms as they are now. Raises ConfigError if there are none."""
        if not self.arms:
            raise ConfigError("there is no arm yet: add one first, for example add('full', method='full', rate=1e-4)")
        return with_begun_arms(self._config(self.arms), self.folder)

    @property
    def yaml(self) -> str:
        """The arms as they are written in a YAML file."""
        return dump_yaml(list(self.arms.values()), short=True)

    def add(
        self, name: str, method: str = "control", rate: float = 1e-3, replay: float | None = None, **control: Any
    ) -> None:
        """Add an arm, and print its YAML. control: fields of its section `control`, such as `interpolation`.

        Raises ConfigError for a name that is there and for values that cannot be.
        """
        arm: dict[str, Any] = {"name": name, "method": method, "learning_rates": [rate]}
        arm |= {"control": control} if control else {}
        self._put(arm | ({} if replay is None else {"replay": replay}))

    def clone(self, name: str, new: str, **changes: Any) -> None:
        """Add a copy of an arm under a new name, with some values changed: fields of `add`.

        The copy has all learning rates of the arm, unless `rate` is given, and its options, unless `method` is.
        """
        arm = self._arm(name)
        if "method" not in arm:
            raise ConfigError(f"arm {name!r} is written with train, loss and average: clone it in its YAML")
        made = {**arm, "name": new} | {key: changes.pop(key) for key in ("method", "replay") if key in changes}
        if "rate" in changes:
            made["learning_rates"] = [changes.pop("rate")]
        if made["method"] != arm["method"]:
            made.pop("options", None)
        made["control"] = {**arm.get("control", {}), **changes}
        self._put({key: value for key, value in made.items() if value not in (None, {})})

    def remove(self, name: str) -> None:
        """Take away an arm that has not begun. Raises ConfigError for others: what was measured stays."""
        self._arm(name)
        if self._begun(name):
            raise ConfigError(f"arm {name!r} has begun, and stays in {self.folder.name}: take it out of the comparison")
        del self.arms[name]

    def run(self) -> Path:
        """Train the arms that are not finished, in a process of its own, and return the run's folder, to be watched.

        Raises RunError if the run goes on already.
        """
        return watch.start(self.config, self.root)

    def stop(self) -> None:
        """Stop the run after its step. `run` goes on from there. Raises RunError if it does not run."""
        watch.stop(self.folder, self.root)

    def states(self) -> dict[str, str]:
        """Return the status of each arm at its learning rates: new, waiting, running, finished, ..."""
        begun = Follower(str(self.folder), self.root).look().arms if (self.folder / "config.yaml").is_file() else []
        known = {arm.name: arm.status for arm in begun}
        return {
            name: ", ".join(known.get(f"{name}-{rate:g}", "new") for rate in arm["learning_rates"])
            for name, arm in self.arms.items()
        }

    def table(self) -> Table:
        """Show a row for each arm: what was picked, and its status. An empty cell: the default, or not read."""
        states = self.states()
        rows = [
            {
                "arm": name,
                "method": arm.get("method") or "parts",
                **{field: _text(arm.get("control", {}).get(field)) for field in CONTROL},
                "replay": _text(arm.get("replay")),
                "rate": ", ".join(f"{rate:g}" for rate in arm["learning_rates"]),
                "status": states[name],
            }
            for name, arm in self.arms.items()
        ]
        return Table.of(rows, ("arm", "method", *CONTROL, "replay", "rate", "status"))

    def _repr_html_(self) -> str:
        head = Markup("<p><b>{}</b>: {} arms in one run</p>").format(self.folder.name, len(self.arms))
        return str(head + self.table().html() + Markup("<pre>arms:\n{}</pre>").format(self.yaml))

    def _begun(self, name: str) -> bool:
        """Whether the run has a folder of this arm, at any learning rate."""
        if not (self.folder / "config.yaml").is_file():
            return False
        rates = {arm.name: arm.learning_rates for arm in run_config(self.folder).arms}.get(name, ())
        return any((self.folder / "arms" / f"{name}-{rate:g}").is_dir() for rate in rates)

    def _put(self, arm: Arm) -> None:
        if arm["name"] in self.arms:
            raise ConfigError(f"there is an arm {arm['name']!r} already: give another name, or remove it first")
        check_fields(self._config({**self.arms, arm["name"]: arm}))
        self.arms[arm["name"]] = arm
        print(dump_yaml([arm], short=True), end="")

    def _config(self, arms: Mapping[str, Arm]) -> ExperimentConfig:
        return parse_config({**self._rest, "arms": list(arms.values())}, "the picked arms")

    def _arm(self, name: str) -> Arm:
        if name not in self.arms:
            raise ConfigError(f"no arm {name!r}: {nearest(name, self.arms)}")
        return self.arms[name]


def options() -> dict[str, tuple[str, ...]]:
    """Return the choices of each field that has some, as the config classes know them: field -> names."""
    return {"method": tuple(METHODS), **{name: found for name, found in field_choices().items() if name in CONTROL}}


def _plain(arm: Arm) -> Arm:
    """Leave out what is a default: a YAML of three lines can be read, one of twenty cannot."""
    from ctrl import ControlConfig

    defaults = ControlConfig().to_dict()
    control = {key: value for key, value in arm.get("control", {}).items() if value != defaults.get(key)}
    short = {key: value for key, value in arm.items() if value not in (None, {}, []) and key != "control"}
    return short | ({"control": control} if control else {})


def _text(value: Any) -> str:
    return "" if value is None else str(value)
