"""Fields that are set on the command line."""

from __future__ import annotations

from experiments.cli.run import overrides


def test_values_of_set_are_yaml() -> None:
    given = ["training.steps=20", "name=x", "data.old={source: self}", "arms.0.learning_rates=[1.0e-3]"]
    expected = {
        "training.steps": 20,
        "name": "x",
        "data.old": {"source": "self"},
        "arms.0.learning_rates": [1e-3],
    }
    assert overrides(given) == expected
