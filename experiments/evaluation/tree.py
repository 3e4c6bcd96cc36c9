"""Read token sequences that begin alike as one tree: each common beginning once, and no padding.

A node is a token after its parent. All nodes go through the model as one sequence: each attends to its ancestors and
itself, at the position of its depth, so its logits are those of the path that ends there.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.models.reading import CANNOT, exact, windows

ROWS = 256  # of logits at a time in fp32
SAME = 1e-3  # nats; largest change that another branch may cause by rounding
BRANCH = 8  # tokens of each branch in the probe
MASKED = ("sliding_window", "attention_chunk_size")  # windows that are part of the mask: a tree's own replaces them
_isolated: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


class Tree:
    """Nodes in the order they were added, so parents come before children."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []  # -1 for a root
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, tokens: Iterable[int], at: int = -1) -> int:
        """Add these tokens after the node `at` (-1: the root), reuse nodes that exist, and return the last one."""
        for token in tokens:
            node = self._children.setdefault((at, token), len(self))
            if node == len(self):
                self.tokens.append(token)
                self.parents.append(at)
                self.depths.append(0 if at < 0 else self.depths[at] + 1)
            at = node
        return at

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Return the attention mask (1, 1, nodes, nodes): 0 for ancestors and itself, else the least number."""
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[None, None]


@torch.no_grad()
def next_log_probs(model: PreTrainedModel, tree: Tree, asked: Sequence[tuple[int, int]]) -> list[float]:
    """Return log p(token | path to node), in nats, for each pair (node, token) of `asked`."""
    device, nodes = model.device, sorted({node for node, _ in asked})
    logits = model(
        input_ids=torch.tensor([tree.tokens], device=device),
        attention_mask=tree.mask(model.dtype).to(device),
        position_ids=torch.tensor([tree.depths], device=device),
        use_cache=False,
        logits_to_keep=torch.tensor(nodes, device=device),
    ).logits[0]
    total = torch.cat([rows.float().logsumexp(dim=-1) for rows in logits.split(ROWS)])
    row_of = {node: row for row, node in enumerate(nodes)}
    rows = torch.tensor([row_of[node] for node, _ in asked], device=device)
    tokens = torch.tensor([token for _, token in asked], device=device)
    values: list[float] = (logits[rows, tokens].float() - total[rows]).tolist()
    return values


def reads_trees(model: PreTrainedModel, longest: int, nodes: int = 0) -> bool:
    """Whether this model can read paths of up to `longest` tokens as trees that get `nodes` tokens and one path more.

    It cannot if layers are recurrent (one branch would influence the next), with flash attention (which takes no such
    mask), or if a window is too short. Other models are tested once, with a tree of that size.
    """
    if any(size < longest + (0 if name in MASKED else nodes) for name, size in windows(model).items()):
        return False
    if not _takes_masks(model):
        return False
    if model not in _isolated:
        _isolated[model] = _isolates(model, nodes)
    return _isolated[model]


def _takes_masks(model: PreTrainedModel) -> bool:
    inner = getattr(model, "get_base_model", lambda: model)()  # of a PEFT model
    return (
        model.config._attn_implementation in ("sdpa", "eager")
        and not inner._is_stateful
        and not getattr(model.config, "alibi", False)  # Falcon's: its positions come from a mask of two dimensions
        and "position_ids" in inspect.signature(type(inner).forward).parameters
    )


def _isolates(model: PreTrainedModel, nodes: int) -> bool:
    """Whether the log-probabilities of a branch stay the same with other tokens in all other branches, and without any.

    Many nodes between a token and its parent must change nothing. Rounding to bf16 would hide a small change.
    """
    try:
        among = _probe(model, 3, nodes)
    except CANNOT:  # OpenAI-GPT takes masks of two dimensions alone
        return False
    return _same(among, _probe(model, 4, nodes)) and (not exact(model) or _same(among, _probe(model, 3, 0)))


def _probe(model: PreTrainedModel, other: int, nodes: int) -> list[float]:
    """Return log p(1 | 1 2 0) from a tree in which branches of `nodes` other tokens come in between."""
    tree, size = Tree(), int(model.config.get_text_config().vocab_size)
    root = tree.add([1])
    for first in range(3, max(4, min(size, 3 + nodes // BRANCH))):
        tree.add([first, *[other] * (BRANCH - 1)], root)
    return next_log_probs(model, tree, [(tree.add([2, 0], root), 1)])


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    return torch.allclose(torch.tensor(one), torch.tensor(other), rtol=0, atol=SAME, equal_nan=True)
