"""The `data` section: one source or several, their shares, and its faults."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from experiments.common.errors import ConfigError
from experiments.config import parse_config
from experiments.data.config import DataConfig
from tests.helpers.small_run import small_values

CHAIN = {"source": "reasoning_gym", "name": "chain_sum"}


class TestConfig:
    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ({"new": {"source": "pyton"}}, r"data.new: unknown source 'pyton': did you mean 'python'\? known: "),
            ({"new": {"source": "python", "modles": []}}, r"modles: unknown key; did you mean 'modules'\?"),
            ({"new": {"nme": "chain_sum"}}, r"nme: unknown key; did you mean 'name'\?"),
            ({"new": {"source": "file"}}, r"data.new.0.file.path: Field required"),
            (
                {"new": [{**CHAIN, "share": 0.5}, {**CHAIN, "share": 0.4}]},
                r"shares of new must sum to 1, but sum to 0.9",
            ),
            ({"old": [{**CHAIN, "share": 1}, CHAIN]}, r"shares of old must sum to 1, but sum to 2 \(1 \+ 1\)"),
            ({"regime": "cpt", "loss": "last_turn"}, r"loss=last_turn: in cpt all tokens are learned"),
            ({"regime": "cpt", "overlong": "cut"}, r"overlong=cut: in cpt all tokens are learned"),
            ({"replay": 0.1}, r"replay=0.1 needs something to replay: write old:"),
            ({"new": {"source": "self"}}, r"source self is what the base model writes already; it belongs under old"),
            ({"template_options": {"messages": "x"}}, r"'messages' is not a variable that can be set: messages, "),
            ({"template_options": {"a b": 1}}, r"'a b' is not a variable that can be set"),
            ({"regime": "pretrain"}, r"data.regime: Input should be 'sft' or 'cpt' \(got 'pretrain'\)"),
        ],
    )
    def test_errors(self, data: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said) as caught:
            parse_config(small_values("base", data=data))
        assert len(str(caught.value).splitlines()) == 2  # the file, then one line

    def test_one_source_or_a_list(self) -> None:
        one = parse_config(small_values("base", data={"new": CHAIN})).data
        assert one == parse_config(small_values("base", data={"new": [CHAIN]})).data
        assert one != DataConfig() == parse_config(small_values("base", data={"new": {"name": "gsm_symbolic"}})).data

    def test_without_shares_several_sources_are_equal(self) -> None:
        three = parse_config(small_values("base", data={"new": [{"name": "gcd"}, CHAIN, {"name": "lcm"}]})).data
        assert [source.share for source in three.new] == [pytest.approx(1 / 3)] * 3
        assert parse_config(small_values("base", data={"old": [CHAIN], "replay": 0.1})).data.old[0].share == 1

    def test_a_config_written_to_yaml_reads_back(self) -> None:
        data = {
            "regime": "cpt",
            "new": [{**CHAIN, "share": 0.25}, {"source": "file", "path": "x.txt", "share": 0.75}],
            "old": {"source": "self", "number": 3},
            "replay": 0.2,
        }
        config = parse_config(small_values("base", data=data))
        assert parse_config(yaml.safe_load(yaml.safe_dump(config.to_dict(), sort_keys=False))) == config

    def test_template_options_keep_their_types_and_change_the_digest(self) -> None:
        plain = parse_config(small_values("base"))
        assert "template_options" not in plain.to_dict()["data"]
        chosen = parse_config(small_values("base", data={"template_options": {"enable_thinking": False, "depth": 2}}))
        assert chosen.data.template_options == {"enable_thinking": False, "depth": 2}
        assert chosen.to_dict()["data"]["template_options"]["enable_thinking"] is False
        assert chosen.digest() != plain.digest()
