"""Print the base model's accuracy on the kept task of the example: `python -m docs.examples.base_accuracy`."""

from __future__ import annotations

from docs.examples.times_table import times_table
from experiments.evaluation.suite import SuiteContext
from experiments.evaluation.suites.kept import FORMS, KeptSuite
from experiments.models.base import load_base
from experiments.models.generation import no_progress
from experiments.models.modes import evaluating
from experiments.models.precision import Precision

BASE = "smollm2-135m-instruct"


def main() -> None:
    model, tokenizer = load_base(BASE)
    settings = KeptSuite.Settings(tasks=("times table",), items="all")
    suite = KeptSuite(settings, SuiteContext(0, BASE), tokenizer, ())
    print(f"{times_table.__doc__} {suite.size // len(FORMS)} questions")
    precision = Precision("fp32")
    for wording, one in (("as asked", suite), ("in other words", suite.reworded())):
        with evaluating(model, precision):
            records = list(one.measure(model, no_progress))
        for form in FORMS:
            right = [record.correct for record in records if record.form == form]
            print(f"{wording:<15} {form:<6} {sum(right) / len(right):.2f}")


if __name__ == "__main__":
    main()
