"""Find in the code of a loss whether it reads Trainer's number of labels, by which micro-batches add up."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import re
import textwrap
import tokenize
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

# what a forward calls that computes its loss
OWN_LOSS = re.compile(r"self\.loss_function\(|CrossEntropyLoss\(|cross_entropy\(|MSELoss\(|BCEWithLogitsLoss\(")
# what a loss reads that micro-batches add up by
SCALES = ("num_items_in_batch", "gradient_accumulation_steps", "current_gradient_accumulation_steps")


def loss_is_a_mean(cls: type[Any]) -> bool:
    """Whether a class takes Trainer's number of labels and does not read it, as classifiers and some decoders do.

    Trainer would leave its loss, a mean, undivided over micro-batches, and the divergence would weigh less next to it.
    It is read if forward names it, or hands its further keywords on: to the loss, or together with the labels.
    """
    try:
        source, name = inspect.getsource(cls.forward), inspect.unwrap(cls.forward).__name__
        (made,) = ast.parse(textwrap.dedent(source)).body
    except (OSError, TypeError, SyntaxError, ValueError, AttributeError, tokenize.TokenError):
        return False  # no code in Python, or no function of its own: a lambda in a longer expression, say
    if not isinstance(made, ast.FunctionDef) or made.name != name or "num_items_in_batch" in source:
        return False
    further = made.args.kwarg.arg if made.args.kwarg else None
    calls = [(call.func, set(_names(call))) for call in ast.walk(made) if isinstance(call, ast.Call)]
    handed = [(function, names) for function, names in calls if further in names]
    if any(isinstance(function, ast.Attribute) and function.attr == "loss_function" for function, _ in handed):
        return False
    inside = "labels" not in {arg.arg for arg in (*made.args.args, *made.args.kwonlyargs)}  # among the keywords
    together = any(inside or any("labels" in name for name in names) for _, names in handed)
    return OWN_LOSS.search(source) is not None or not together


def _names(call: ast.AST) -> Iterator[str]:
    """Yield the names in the arguments of a call, without those in calls inside it."""
    for part in ast.iter_child_nodes(call):
        if isinstance(part, ast.keyword | ast.Name):
            yield (part.arg or "") if isinstance(part, ast.keyword) else part.id
        if not isinstance(part, ast.Call):
            yield from _names(part)


def reads_total(function: Any) -> bool:
    """Whether a compute_loss, or compute_loss_func, reads Trainer's number of labels: else its loss is a mean.

    Many have the argument and leave it; others hand it on with all keywords, or divide by the number of micro-batches
    themselves. Of an object its __call__ is looked at, of a module its forward. What has no code in Python is believed.
    """
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not hasattr(function, "__code__"):
        function = function.forward if isinstance(function, nn.Module) else type(function).__call__
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is None or _loads_total(code)


@functools.lru_cache(maxsize=64)  # it is asked in each step
def _loads_total(code: types.CodeType) -> bool:
    named = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    rest = code.co_varnames[named : named + bool(code.co_flags & inspect.CO_VARKEYWORDS)]  # **kwargs
    loaded = [one.argval for one in dis.get_instructions(code) if one.opname.startswith("LOAD")]
    read = {name for one in loaded for name in (one if isinstance(one, tuple) else (one,)) if isinstance(name, str)}
    return not read.isdisjoint((*SCALES, *rest))
