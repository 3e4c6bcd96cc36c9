"""Every causal LM of the installed transformers, built tiny: its expansion is right, or it is refused with a reason.

A new release of transformers shows as a difference from the committed table: new architectures, other verdicts.
`python -m tests.helpers.architecture_table` writes the table again, with every configuration of each architecture. The
walk here tries concat, and for every second architecture one of the other two, in turns.
"""

from __future__ import annotations

import pytest

from ctrl.config import ControlConfig
from tests.helpers.architecture_contract import CONFIGS, verdicts
from tests.helpers.architecture_table import read
from tests.helpers.architectures import ARCHITECTURES

TABLE = read()["architectures"]
OTHERS = [kind for kind in CONFIGS if kind != "concat"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_verdict_is_that_of_the_table(name: str) -> None:
    turn = ARCHITECTURES.index(name)
    kinds = ["concat", OTHERS[turn // 2 % len(OTHERS)]][: 2 - turn % 2]
    expected = {kind: TABLE.get(name, {}).get(kind) for kind in kinds}
    assert verdicts(name, kinds) == expected, f"see: python -m tests.helpers.architecture_table {name}"


@pytest.mark.slow
def test_the_table_has_no_architecture_that_is_gone() -> None:
    assert sorted(TABLE) == ARCHITECTURES


def test_none_is_wrong_and_few_were_not_run() -> None:
    found = [verdict for by_kind in TABLE.values() for verdict in by_kind.values()]
    assert {verdict.split(":")[0].split(";")[0] for verdict in found} == {"right", "refused", "not run"}
    assert sum(verdict.startswith("not run") for verdict in found) <= 7 * len(CONFIGS)


def test_a_wrong_expansion_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk is no use if it passes whatever happens."""
    monkeypatch.setitem(CONFIGS, "concat", ControlConfig(layers=2, norm_mix=0.5))  # does not start as the base
    found = verdicts("llama")
    assert found["concat"].startswith("WRONG: Wrong: start is off by")
    assert found["stack"] == "right"
