"""How a source of rows is measured: which grader decides, and which rows are its test set."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest
from experiments.common.section import Section, later_field
from experiments.data.graders import AnyGrader
from experiments.data.items import Example, Item, NewTask, NewText
from experiments.data.source import Finite, Source, as_task, drawn


class TestSet(Section):
    """The rows that are measured: those of a file, a split of the same data set, or a share of the rows.

    Without it, `evaluation.new_items` questions are held out.
    """

    __test__ = False  # no class of tests, whatever pytest makes of its name
    path: str | None = Field(None, description="a file, or a folder of files")
    split: str | None = Field(None, description="split of the data set (source huggingface)")
    subset: str | None = Field(None, description="configuration of the dataset, if it is not that of the training rows")
    share: float | None = Field(None, gt=0, lt=1, description="share of the different questions that is held out")

    @model_validator(mode="after")
    def _one(self) -> TestSet:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) > 1 and set(given) != {"split", "subset"}:
            raise ValueError(f"{' and '.join(given)} are given: name the test set by one of them")
        if not given:
            raise ValueError("name the test set: a path, or one of path, split, subset, share")
        return self

    @property
    def of_training(self) -> bool:
        """Whether its rows are among those of the training data."""
        return self.share is not None


def _read(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _write(value: TestSet | None) -> Any:
    plain = value.model_dump(exclude_none=True) if value else None
    return plain["path"] if plain and set(plain) == {"path"} else plain


AnyTestSet = Annotated[TestSet | None, BeforeValidator(_read), PlainSerializer(_write)]


class Measured(Source):
    """A source whose rows are measured by a grader, on a test set of their own or on rows that it holds out."""

    grader: AnyGrader | None = later_field(
        None, description="decides whether a reply is right: a name, {name: its fields}, or FILE:FUNCTION of your own"
    )
    test: AnyTestSet = later_field(
        None, description="the test set: a path, or a mapping; default: rows held out by the hash of the question"
    )

    @model_validator(mode="after")
    def _has_splits(self) -> Self:
        if self.test and (self.test.split or self.test.subset) and "split" not in type(self).model_fields:
            raise ValueError(f"test: source {self.source} has no splits: give test the path of a file, or a share")
        return self

    def digest(self) -> str:
        """Return the digest of the rows, and of the grader and the test set if there are any."""
        parts = [self.grader.digest()] if self.grader else []
        if self.grader and self.grader.reads and isinstance(self, Finite):
            table = self.table
            parts += table.values if table else [repr(dict(e.metadata)) for e in self.examples if isinstance(e, Item)]
        if self.test:
            parts += [self.test.model_dump_json(), *(() if self.test.of_training else map(repr, self.test_examples))]
        return short_digest(super().digest(), *parts) if parts else super().digest()

    def held_out(self, count: int, seed: int) -> NewTask | NewText:
        """Return `count` examples of the test set, or all if it has fewer; without one, of those held out."""
        return self.tested(count, seed) if self.test else self.graded(super().held_out(count, seed))

    def sample(self, count: int, seed: int) -> NewTask | NewText:
        """Return `count` examples to measure on, or all if there are fewer: none is trained on."""
        return self.tested(count, seed) if self.test else self.graded(super().sample(count, seed))  # type: ignore[misc]

    def tested(self, count: int, seed: int) -> NewTask | NewText:
        """Return `count` examples of the test set, none of which is trained on. Raises ConfigError if it is empty."""
        found, ids = drawn(self.test_examples, count, seed)
        if self.test and self.test.share:
            size = max(1, round(self.test.share * len(ids)))
            if size == len(ids):
                raise ConfigError(f"source {self.label}: test.share leaves none of {len(ids)} questions to train on")
            ids = ids[:size]
        task = as_task(self.label, found[: len(ids)])
        return self.graded(dataclasses.replace(task, further=frozenset(ids)))

    def graded(self, task: NewTask | NewText) -> NewTask | NewText:
        """Return the task with the grader of the YAML, if there is one. Raises ConfigError if it cannot be used."""
        if self.grader is None:
            return task
        if isinstance(task, NewText):
            raise ConfigError(f"source {self.label}: grader reads replies to questions, but its rows are documents")
        if task.grader:
            return task
        self.grader.check(task.test)
        scorer, key = self.grader.scorer(), self.grader.digest()
        choice, likelihood = self.grader.by_choice, self.grader.by_likelihood
        return dataclasses.replace(task, scorer=scorer, grader=key, by_choice=choice, by_likelihood=likelihood)

    @functools.cached_property
    def test_examples(self) -> Sequence[Example]:
        """All rows of the test set; of a share, all rows."""
        if self.test is None:
            return ()
        rows = (self._tests or self).stored()
        return rows if isinstance(rows, Sequence) else tuple(rows)

    @property
    def test_notes(self) -> list[str]:
        """What was not read of a test set of its own, one line each."""
        return [f"test: {note}" for note in self._tests.notes] if self._tests else []

    @functools.cached_property
    def _tests(self) -> Source | None:
        """The source of the test rows, if it is another one."""
        return None if self.test is None or self.test.of_training else self.test_source(self.test)

    def test_source(self, test: TestSet) -> Source:
        """Return the source of the test rows, with the columns of this one."""
        return type(self)(**{**self.given(), **test.model_dump(exclude_none=True)})

    def given(self) -> dict[str, Any]:
        """Return the fields that are given and hold for the test rows too."""
        return {name: getattr(self, name) for name in self.model_fields_set - {"test", "share", "source"}}
