"""The YAML section `data`: what is trained on and what is replayed, in which shares and order."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from experiments.common.section import Section, later_field
from experiments.data.chosen import ReplayChoice
from experiments.data.sources import AnySource, ReasoningGym, check_shares, named, with_shares
from experiments.data.stages import Earlier, check_stream, stage_ends
from experiments.models.template import TEMPLATES, Option

GIVEN = ("messages", "add_generation_prompt", "tools", "documents", "bos_token", "eos_token")  # by transformers


class DataConfig(Section):
    """The new task, and how much old text is replayed with it. Shares are of tokens."""

    new: tuple[AnySource, ...] = Field((ReasoningGym(),), min_length=1, description="one source or a list")
    old: tuple[AnySource, ...] = Field((), description="sources of the replayed text: one source or a list")
    replay: float = Field(0.0, ge=0, lt=1, description="share of `old` in all tokens; the rest is `new`")
    choose: ReplayChoice | None = later_field(
        None, description="which examples of `old` are replayed; default: all, in random order"
    )
    order: Literal["mixed", "sequential"] = Field(
        "mixed", description="sources of `new` together, or one after the other"
    )
    regime: Literal["sft", "cpt"] = Field("sft", description="chats with the loss on answers, or packed text")
    system: str | None = Field(
        None, description="system turn of all chats ('' leaves it empty); default: the template's"
    )
    template_options: dict[str, Option] = Field(
        {},
        exclude_if=lambda value: not value,  # so that configs without it keep their digests
        description="variables of the chat template, for example {enable_thinking: false}; in all chats",
    )
    template: str | None = later_field(
        None, description=f"chat template: a file, one that the tokenizer names, or {', '.join(TEMPLATES)}"
    )
    merge_system: bool = later_field(
        False, description="write a system turn before the first question, for templates that refuse one"
    )
    loss: Literal["all_turns", "last_turn", "all_tokens"] = later_field(
        "all_turns", description="tokens of a chat that are learned: all replies, the last, or all but tool results"
    )
    overlong: Literal["drop", "cut", "error"] = later_field(
        "drop", description="chats longer than a row in sft: left out, cut to their beginning, or an error"
    )
    packed: bool | None = later_field(
        None, description="several conversations or documents in a row; default: in cpt only"
    )
    length: int = Field(
        512,
        ge=16,
        le=10**7,
        description="tokens of a row; cpt fills rows to it; sft cuts longer texts; longer chats: see overlong",
    )

    @field_validator("new", "old", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        values = [value] if isinstance(value, dict) else value
        return with_shares([named(one) for one in values]) if isinstance(values, list | tuple) else values

    @field_validator("template_options")
    @classmethod
    def _variables(cls, value: dict[str, Option]) -> dict[str, Option]:
        for name in value:
            if not name.isidentifier() or name in GIVEN:
                raise ValueError(f"{name!r} is not a variable that can be set: {', '.join(GIVEN)} are given")
            if isinstance(option := value[name], str) and option.lower() in ("true", "false"):
                raise ValueError(
                    f"{name}: {option!r} is a text, and a template asks for true or false: leave out the quotes"
                )
        return value

    @model_validator(mode="after")
    def _mixture(self) -> DataConfig:
        check_shares(self.new, "new")
        check_shares(self.old, "old")
        check_stream(self.new, self.old, self.sequential)
        if any(source.source == "self" for source in self.new):
            raise ValueError("new: source self is what the base model writes already; it belongs under old")
        for name, value in (("loss", self.loss), ("overlong", self.overlong)):
            if self.regime == "cpt" and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={value}: in cpt all tokens are learned, and chats are cut into rows: leave it out"
                )
        if self.replay and not self.old:
            raise ValueError(
                f"replay={self.replay:g} needs something to replay: write old:, for example old: {{source: self}}"
            )
        if self.choose is not None and (not self.old or any(isinstance(one, Earlier) for one in self.old)):
            raise ValueError(
                "choose: needs examples of `old` to choose from, other than those of source earlier: write old:, for "
                "example old: {source: self}"
            )
        return self

    @property
    def packs(self) -> bool:
        """Whether a row may hold several conversations or documents."""
        return self.regime == "cpt" if self.packed is None else self.packed

    @property
    def sequential(self) -> bool:
        """Whether the sources of `new` are trained on one after the other."""
        return self.order == "sequential"

    def stage_ends(self, steps: int) -> tuple[int, ...]:
        """Return the last step of each stage of a stream of tasks; (steps,) for mixed data.

        Raises ValueError if a stage would have no step.
        """
        return stage_ends(self.new, steps) if self.sequential else (steps,)

    @property
    def chat_settings(self) -> dict[str, Any]:
        """The arguments of `set_template`: what decides on the text of all chats."""
        options = self.template_options
        return {"system": self.system, "options": options, "template": self.template, "merge_system": self.merge_system}

    @property
    def label(self) -> str:
        """The new task in a few words."""
        return " + ".join(source.label for source in self.new)
