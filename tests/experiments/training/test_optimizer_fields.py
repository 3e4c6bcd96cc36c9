"""Arguments that the chosen optimizer does not read are named; those that it reads are not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from experiments.training.arguments import optimizers
from experiments.training.optimizer_fields import OPTIM_ARGS, unread


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optim": "sgd", "adam_beta1": 0.5}, "adam_beta1 is not read by optim 'sgd': leave it out"),
        ({"optim": "adafactor", "adam_epsilon": 1e-3}, "adam_epsilon is not read by optim 'adafactor'"),
        ({"optim": "lion_32bit", "adam_epsilon": 1e-3}, "adam_epsilon is not read by optim 'lion_32bit'"),
        ({"optim": "galore_adamw", "adam_beta2": 0.9}, "adam_beta2 is not read by optim 'galore_adamw'"),
        ({"optim_args": "foo=1"}, "optim_args: foo is not read by optim 'adamw_torch_fused': it reads none"),
        ({"optim": "sgd", "optim_args": "momentun=.9"}, "momentun is not read by optim 'sgd': it reads momentum, d"),
        ({"optim": "sgd", "optim_args": "weight_decay=.9"}, "weight_decay is not read .*: it is training.weight_decay"),
        ({"optim_target_modules": "all-linear"}, "optim_target_modules is not read by optim .*GaLore"),
        ({"dataloader_multiprocessing_context": "fork"}, "no effect without dataloader_num_workers"),
    ],
)
def test_what_is_not_read_is_named(given: dict[str, Any], said: str) -> None:
    (fault,) = unread(given)
    assert re.search(said, fault)


def test_what_is_read_is_not_named() -> None:
    for given in (
        {},
        {"adam_beta1": 0.8, "adam_epsilon": 1e-6},
        {"optim": "lion_32bit", "adam_beta1": 0.8},
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        {"optim": "rmsprop_bnb", "optim_args": "alpha=0.9"},
        {"optim": "apollo_adamw", "optim_target_modules": "all-linear", "optim_args": "rank=4", "adam_beta1": 0.8},
        {"dataloader_multiprocessing_context": "fork", "dataloader_num_workers": 1},
    ):
        assert list(unread(given)) == []


def test_each_part_of_a_name_is_of_an_optimizer() -> None:
    assert [part for part in OPTIM_ARGS if not any(part in name for name in optimizers())] == []
