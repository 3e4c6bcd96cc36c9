"""The models to measure: their names, checkpoints and tokenizers, and the suites that each cannot have."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.paths import check_file_name, name_on_disk
from experiments.data.items import NewTask, NewText
from experiments.evaluation.cache import tokenizer_digest
from experiments.evaluation.evaluate import Suites
from experiments.evaluation.suite import DrawnSuite
from experiments.evaluation.suites import SUITES
from experiments.evaluation.suites.kept import FORMS
from experiments.measure.base import Base
from experiments.measure.endpoint import NO_PROBABILITIES, Endpoint, is_endpoint
from experiments.measure.files import (
    check_last,
    checkpoints,
    content,
    folder_of,
    same_content,
    stamp,
    tokenizer_folder,
)
from experiments.measure.kinds import Kind, kind_of
from experiments.measure.tokenizers import asked_otherwise, check_tokenizer_files, own_tokenizer, ways


@dataclass(frozen=True)
class Checkpoint:
    """One state of a model. step: 1 for a model that is measured once."""

    step: int
    folder: Path
    kind: Kind

    @property
    def stamp(self) -> str:
        return stamp(self.folder)

    @property
    def content(self) -> str:
        return content(self.folder)


@dataclass(frozen=True)
class Model:
    """A model to measure.

    tokenizer: for suites of answers: its own if it differs from the base's. own: whether it does. left_out: suites that
    it cannot have, and why. extra: rows of its embedding beyond the base's; distributions are compared without them.
    endpoint: of a model on a server, which has no checkpoints. remark: how it is asked, if not as the base is.
    """

    name: str
    address: str
    checkpoints: tuple[Checkpoint, ...]
    tokenizer: PreTrainedTokenizerBase
    own: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)
    extra: int = 0
    endpoint: Endpoint | None = None
    remark: str = ""

    @property
    def kind(self) -> str:
        return "endpoint" if self.endpoint else self.checkpoints[-1].kind.name

    @property
    def steps(self) -> list[int]:
        return [1] if self.endpoint else [one.step for one in self.checkpoints]


def read_base(address: str, allow_other: bool = False, loading: Mapping[str, Any] | None = None) -> Base:
    """Find the base model, which must be a whole one, and check its files. Raises ConfigError.

    loading: see `Base`.
    """
    remote_code = bool(loading and loading["remote_code"])
    if is_endpoint(address):
        raise ConfigError(f"--base {address}: a server does not give its weights: name the base model or its folder")
    folder = folder_of(address, remote_code)
    base = Base(address, folder, allow_other, loading or {})
    kind = kind_of(folder)
    if not kind.whole:
        raise ConfigError(f"--base {address} is a {kind.name}: name the whole model from which it was trained")
    kind.check(folder, base)
    check_tokenizer_files(folder, folder)
    return base


def read_models(
    addresses: Sequence[str], base: Base, tokenizer: PreTrainedTokenizerBase, task: Sequence[NewTask | NewText] = ()
) -> list[Model]:
    """Find and check the models, without loading any. addresses: `ADDRESS` or `NAME=ADDRESS`. task: the new one.

    Raises ConfigError for an address or name that is wrong or twice, and for a folder that cannot be loaded.
    """
    pairs = [_named(address) for address in addresses]
    names = [name for name, _ in pairs]
    if not names or len(set(map(name_on_disk, names))) < len(names):
        given = ", ".join(names) or "none"
        raise ConfigError(f"--model: each needs a name of its own, in more than case, NAME=MODEL, but got {given}")
    return [_read(name, address, base, tokenizer, task) for name, address in pairs]


def _named(text: str) -> tuple[str, str]:
    """Split `NAME=ADDRESS`; without a name it is the last part of the address, or a server's name of the model."""
    name, equals, address = text.partition("=")
    if is_endpoint(text):
        endpoint = Endpoint.opened(text)
        return re.sub(r"[^\w.-]+", "-", endpoint.model.rpartition("/")[2]), endpoint.address
    if not equals:
        path = Path(text)
        return (path.resolve().name if path.is_dir() else path.name) or text, text
    try:
        return check_file_name(name), address
    except ValueError as error:
        raise ConfigError(f"--model {text}: write NAME=MODEL; {error}") from error


def _read(
    name: str, address: str, base: Base, tokenizer: PreTrainedTokenizerBase, task: Sequence[NewTask | NewText]
) -> Model:
    if is_endpoint(address):
        endpoint = Endpoint.opened(address)
        return Model(name, endpoint.address, (), tokenizer, endpoint=endpoint)
    folder = folder_of(address, base.remote_code)
    check_last(folder, checkpoints(folder))
    steps = checkpoints(folder) or {1: folder}
    found = tuple(Checkpoint(step, path, kind_of(path)) for step, path in steps.items())
    for one in found:
        one.kind.check(one.folder, base)
    last = found[-1]
    facts = last.kind.facts(last.folder, base)
    own = own_tokenizer(last.kind, last.folder, folder, base)
    if own is None:
        return Model(name, address, found, tokenizer, False, _other_shape(facts, base.facts))
    vocabulary, theirs = tokenizer.get_vocab(), own.get_vocab()
    moved = sum(theirs.get(token) != i for token, i in vocabulary.items())
    left_out = _other_shape(facts, base.facts)
    if moved:
        reason = f"its tokenizer is another one than the base's: {moved} of {len(vocabulary)} tokens have other ids"
        left_out = dict.fromkeys(distributions(task), reason)
    same = not moved and len(theirs) == len(vocabulary) and ways(own) == ways(tokenizer)
    extra = 0 if moved else max(0, (facts["vocab_size"] or 0) - (base.facts["vocab_size"] or 0))
    remark = "" if same else asked_otherwise(own, tokenizer, bool(moved))
    return Model(name, address, found, tokenizer if same else own, not same, left_out, extra, remark=remark)


def check_endpoints(models: Sequence[Model], suites: Sequence[str]) -> None:
    """Raise ConfigError if a model on a server can have none of these suites."""
    answer = [name for name, suite in SUITES.items() if suite.answered is not DrawnSuite.answered]
    for model in models:
        if model.endpoint and not set(answer) & set(suites):
            raise ConfigError(
                f"--model {model.address}: a server gives replies alone, and no suite of {', '.join(suites)} is "
                f"measured by replies: add {', '.join(answer)} to --suites"
            )


def by_replies_alone(model: Model, suites: Suites) -> Model:
    """Return a model on a server with what it cannot have: all that needs probabilities. Others as they are."""
    if model.endpoint is None:
        return model
    out = [name for name, suite in suites.suites.items() if not suite.replies]
    out += [f"kept/{form}" for form in FORMS if "kept" in suites.suites and "kept" not in out]
    return dataclasses.replace(model, left_out=dict.fromkeys(out, NO_PROBABILITIES))


def distributions(task: Sequence[NewTask | NewText] = ()) -> list[str]:
    """List the suites that compare numbers for each token or state with the base's. task: the new one, maybe of texts.

    A model whose ids are the base's has them on the base's tokens.
    """
    texts = ["new"] if any(isinstance(one, NewText) for one in task) else []
    return [name for name, suite in SUITES.items() if suite.compares_tokens] + texts


def _other_shape(facts: Mapping[str, object], base: Mapping[str, object]) -> dict[str, str]:
    """Name the suites that a model of another shape cannot have, and why."""
    odd = [n for n in ("model_type", "hidden_size", "num_hidden_layers") if facts[n] != base[n]]
    found = {}
    if odd:
        found["alignment"] = "another architecture: " + ", ".join(f"{n} {facts[n]}, not {base[n]}" for n in odd)
    if int(str(facts["vocab_size"] or 0)) < int(str(base["vocab_size"] or 0)):
        found["drift"] = f"it predicts {facts['vocab_size']} tokens, the base {base['vocab_size']}"
    return found


def noted_facts(model: Model) -> dict[str, Any]:
    """Describe what is measured under a name: its kind, its files, the suites that it cannot have."""
    stamps = {str(one.step): one.stamp for one in model.checkpoints} or {"1": model.address}
    contents = {str(one.step): one.content for one in model.checkpoints}
    found = {"kind": model.kind, "files": stamps, "content": contents, "left_out": dict(model.left_out)}
    found["remark"] = model.remark  # for `compare` and `gate`
    above = model.checkpoints and tokenizer_folder(model.checkpoints[-1].folder) == model.checkpoints[-1].folder.parent
    return found | ({"tokenizer": tokenizer_digest(model.tokenizer)} if above else {})  # its files are not among these


def is_of(known: Mapping[str, Any], model: Model) -> bool:
    """Whether noted facts are the model's. Earlier versions noted no tokenizer, no remark, no content or less of it."""
    facts = noted_facts(model)
    noted, now = known.get("content"), facts.pop("content")
    words, remark = facts.pop("tokenizer", ""), facts.pop("remark")
    if known.get("tokenizer", words) != words or known.get("remark", remark) != remark:
        return False
    if {name: value for name, value in known.items() if name not in ("content", "tokenizer", "remark")} != facts:
        return False
    folders = {str(one.step): one.folder for one in model.checkpoints}
    return noted in (None, now) or all(same_content(noted.get(step, ""), folder) for step, folder in folders.items())
