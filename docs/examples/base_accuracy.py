"""Print the base model's accuracy on kept tasks, all of their questions.

python -m docs.examples.base_accuracy                       # the example of the documentation, times_table.py
python -m docs.examples.base_accuracy reading sequences     # tasks by name
"""

from __future__ import annotations

import sys

import docs.examples.times_table  # noqa: F401
from experiments.evaluation.kept_tasks.tasks import KEPT_TASKS
from experiments.evaluation.suite import SuiteContext
from experiments.evaluation.suites.kept import FORMS, KeptSuite
from experiments.models.base import load_base
from experiments.models.modes import evaluating
from experiments.models.precision import Precision
from experiments.models.sharing import no_progress

BASE = "smollm2-135m-instruct"


def main(tasks: list[str]) -> None:
    model, tokenizer = load_base(BASE)
    for task in tasks:
        suite = KeptSuite(KeptSuite.Settings(tasks=(task,), items="all"), SuiteContext(0, BASE), tokenizer, ())
        print(f"{task}: {KEPT_TASKS[task].__doc__} {suite.size // len(FORMS)} questions")
        for wording, one in (("as asked", suite), ("in other words", suite.reworded())):
            if one is None:
                continue
            with evaluating(model, Precision("fp32")):
                records = list(one.measure(model, no_progress))
            for form in FORMS:
                right = [record.correct for record in records if record.form == form]
                print(f"{wording:<15} {form:<6} {sum(right) / len(right):.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["times table"])
