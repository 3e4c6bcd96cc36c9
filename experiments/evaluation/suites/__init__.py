"""The table of suites: one file and one line each."""

from __future__ import annotations

from experiments.evaluation.suite import DrawnSuite
from experiments.evaluation.suites.alignment import AlignmentSuite
from experiments.evaluation.suites.drift import DriftSuite
from experiments.evaluation.suites.instructions import InstructionSuite
from experiments.evaluation.suites.kept import KeptSuite
from experiments.evaluation.suites.lm_eval import HarnessSuite
from experiments.evaluation.suites.new_task import NewTaskSuite
from experiments.evaluation.suites.text import TextSuite

SUITES: dict[str, type[DrawnSuite]] = {
    suite.name: suite
    for suite in (
        NewTaskSuite,
        KeptSuite,
        InstructionSuite,
        DriftSuite,
        TextSuite,
        AlignmentSuite,
        HarnessSuite,
    )
}
