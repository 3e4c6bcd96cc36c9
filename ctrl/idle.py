"""Find the parameters of copies that no gradient reaches: DDP would wait for it, and the optimizer hold them in vain.

These are biases of routers that the architecture moves itself, indexers, and cross-attention that runs only with an
encoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def idle(copies: Iterable[nn.Module], reached: set[int]) -> list[nn.Parameter]:
    """List the parameters of the copies that would train and whose ids are not among those reached.

    Those of modules in a list (experts) are left out: they take turns, so they keep training. The dicts in which PEFT
    keeps an adapter are no such list: one may be put on a matrix whose weight the layer reads itself.
    """
    found = []
    for copied in copies:
        named = ((name.rpartition(".")[2], module) for name, module in copied.named_modules())
        lists = [
            m for name, m in named if isinstance(m, nn.ModuleList | nn.ModuleDict) and not name.startswith("lora_")
        ]
        known = reached | {id(p) for one in lists for p in one.parameters()}
        found += [p for p in copied.parameters() if p.requires_grad and id(p) not in known]
    return found


def leaves(out: Tensor) -> set[int]:
    """Collect the ids of the parameters in the graph of a tensor; no gradient is computed."""
    nodes, seen, found = [out.grad_fn], set(), set()
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        nodes += [following for following, _ in node.next_functions]
    return found
