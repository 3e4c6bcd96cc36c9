"""A config is checked against its base model before anything is trained."""

from __future__ import annotations

import pytest

from experiments.common.errors import ConfigError
from experiments.config import parse_config
from experiments.runs.checks import check_run
from tests.helpers.one_arm import arm
from tests.helpers.tiny_llama import tiny


def test_an_arm_is_checked_against_its_base_model() -> None:
    wrong = arm(train={"partial": {"layers": 9}}, loss=[{"kl": {"tokens": "replayed"}}])
    model = tiny()
    model.loss_function = lambda *args, **kwargs: None  # type: ignore[method-assign]
    for made, message in (
        (wrong, "arm 'x': its options need replayed rows"),
        (wrong, "arm 'x': .*9"),
        (
            arm(loss=["dft"]),
            r"arm 'x': method full\+dft weighs tokens, but the loss of this model is not transformers'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            check_run(parse_config({"name": "x", "arms": [made]}), model)
