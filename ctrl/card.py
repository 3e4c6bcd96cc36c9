"""Write the model card of a saved expansion: what it is, on which base, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CARD_FILE = "README.md"
MARK = "<!-- written by ctrl.save, which replaces this file: delete this line to keep your own text -->"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # the Hub refuses a card whose base_model is no such name


def card(base: Mapping[str, Any], control: Mapping[str, Any], tags: Sequence[str] = ()) -> str:
    """Return the text of a README.md. base, control: as in control_config.json. tags: more of them for the Hub."""
    name = base["name"] if REPOSITORY.fullmatch(base["name"] or "") and not Path(base["name"]).exists() else None
    front = ["library_name: control-llm", *([f"base_model: {name}"] if name else []), "tags:"]
    front += [f"- {tag}" for tag in dict.fromkeys(("control-llm", *tags))]
    alpha = f"{control['interpolation']}, alpha {control['alpha']}, {control['alpha_start']} at the start"
    divergence = f"{control['divergence']}, weight {control['divergence_weight']}"
    shape = f"a {base['model_type']} with {base['num_hidden_layers']} layers of width {base['hidden_size']}"
    rows = {
        "base": name or shape,
        "structure": control["structure"] + (f", rank {control['lora_rank']}" if control["expanded"] == "lora" else ""),
        "layers": ", ".join(map(str, base["expanded_layers"])),
        "interpolation": "-" if control["structure"] == "stack" else alpha,
        "divergence": "-" if control["structure"] == "stack" else divergence,
    }
    loaded_from = f'"{name}"' if name else "base_model"
    return "\n".join(
        [
            "---",
            *front,
            "---",
            MARK,
            "",
            "# Control LLM expansion" + (f" of {name}" if name else ""),
            "",
            "Trained copies of some decoder layers, to run with the frozen layers of the base",
            "([Control LLM](https://arxiv.org/abs/2501.10979)). This is no model of its own: it needs its base.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in rows.items()),
            "",
            "```python",
            "import ctrl",
            "",
            f'model = ctrl.load({loaded_from}, "this folder, or its name on the Hub")',
            "```",
            "",
        ]
    )


def model_tags(model: Any) -> list[str]:
    """Return the tags that were given to a model for the Hub: its add_model_tags keeps them, and trainers call it."""
    return list(getattr(model, "model_tags", None) or ())


def may_write(path: Path) -> bool:
    """Return whether the card is missing or still ours."""
    return not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")
