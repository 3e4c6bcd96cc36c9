"""Turn the share of the copies of a trained model by hand: its replies next to the base model's. Nothing trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import ipywidgets as widgets
from IPython.display import display
from markupsafe import Markup
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.reporting.table import Table
from experiments.runs.trained import replies_at

BASE = 0.0  # alpha at which an expanded model is its base model
WIDE = {"width": "640px"}


class Dial:
    """A slider for alpha, and prompts, one on each line. A change shows the line of Python that it equals.

    model: expanded, `load_trained`. alpha: where it was trained, and where the slider starts. tokens: of a reply.
    precision: that of the run.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        alpha: float = 0.5,
        tokens: int = 24,
        precision: Literal["auto", "bf16", "fp32"] = "auto",
    ) -> None:
        self.model, self.tokenizer, self.trained, self.tokens = model, tokenizer, alpha, tokens
        control = getattr(model, "control", None)  # plerp has P a at 0, and P trains
        plain = control is None or control.config.interpolation != "plerp"
        self.base_title = "base model (alpha 0)" if plain else "alpha 0: P a, not the base model"
        self.precision: dict[str, Any] = {} if precision == "auto" else {"precision": precision}
        self.slider = widgets.FloatSlider(
            alpha, min=0, max=1.5, step=0.1, continuous_update=False, description="alpha", layout=WIDE
        )
        lines = "\n".join(" ".join(prompt.split()) for prompt in prompts)
        self.prompts = widgets.Textarea(
            lines, continuous_update=False, description="prompts", rows=len(prompts), layout=WIDE
        )
        self.shown = widgets.HTML()
        self.shown.add_class("jp-RenderedHTMLCommon")  # the lab's style of tables
        for field in (self.slider, self.prompts):
            field.observe(self.turn, "value")
        self.turn()

    def _ipython_display_(self) -> None:
        display(widgets.VBox([self.slider, self.prompts, self.shown]))

    def turn(self, change: Any = None) -> None:
        """Show the replies at the slider's alpha next to the base model's."""
        asked = [line.strip() for line in self.prompts.value.splitlines() if line.strip()]
        alpha = round(self.slider.value, 2)
        further = "".join(f", {name}={value!r}" for name, value in self.precision.items())
        line = f">>> replies_at(model, tokenizer, {asked!r}, [0.0, {alpha:g}], {self.tokens}{further})"
        alphas = [BASE, alpha]
        made = replies_at(self.model, self.tokenizer, asked, alphas, self.tokens, **self.precision) if asked else None
        own = f"alpha {alpha:g}" + (", trained here" if alpha == self.trained else "")
        rows = [] if made is None else [(prompt, *cells) for prompt, cells in zip(asked, made.to_numpy(), strict=True)]
        table = Table("", ("prompt", self.base_title, own), tuple(map(tuple, rows)))
        self.shown.value = Markup("<pre>{}</pre>").format(line) + table.html()
