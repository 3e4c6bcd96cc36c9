"""A model on a server: the replies of the same model here, and what a server that fails leads to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from experiments.common.errors import ConfigError
from experiments.measure import endpoint
from experiments.measure.endpoint import NO_PROBABILITIES, TRIES, Endpoint, EndpointError
from experiments.measure.models import read_base, read_models
from experiments.measure.replies import WORKERS
from experiments.measure.run import measure
from experiments.measure.tokenizers import load_tokenizer
from experiments.models.base import load_base
from experiments.records import Record, read_records
from tests.helpers.measured import SMALL, model_folder
from tests.helpers.reply_server import ReplyServer, of_model, reply, serving

SECRET = "sk-not-for-others"


def choice(message: dict[str, Any], **more: Any) -> Any:
    return 200, {"choices": [{"message": message, **more}]}, {}


def test_a_question_is_asked_greedily_and_a_think_block_is_no_part_of_the_reply(echo: ReplyServer) -> None:
    one = Endpoint.opened(echo.address)
    assert one.reply("what?", 7) == "WHAT?"
    plain = {"model": "tiny", "messages": [{"role": "user", "content": "what?"}], "temperature": 0, "max_tokens": 7}
    assert echo.asked == [{**plain, "repetition_penalty": 1.0, "repeat_penalty": 1.0}]  # else that of the server
    echo.answer = lambda body: reply("<think>\nso ...\n</think>\n\n42\n")
    assert one.reply("what?", 7) == "42\n"  # as a model here: flips compare the texts of wrong replies


def test_a_server_that_knows_no_penalty_is_asked_without(echo: ReplyServer) -> None:
    echo.answer = lambda body: (400, {}, {}) if "repetition_penalty" in body else reply("yes")
    one = Endpoint.opened(echo.address)
    assert [one.reply("now?", 3), one.reply("and now?", 3)] == ["yes", "yes"]
    assert ["repetition_penalty" in body for body in echo.asked] == [True, False, False]  # it is refused once
    echo.answer = lambda body: (400, {"error": "too long"}, {})
    with pytest.raises(EndpointError, match=r"refuses a question: 400 .*too long"):
        Endpoint.opened(echo.address).reply("now?", 3)


@pytest.mark.parametrize(
    ("url", "said"),
    [("http://gpu-box:8000/v1", True), ("http://127.evil.com/v1", True), ("https://gpu-box/v1", False),
     ("http://127.0.0.1:8000/v1", False), ("http://[::1]:8000/v1", False), ("http://localhost/v1", False)],
)  # fmt: skip
def test_a_key_that_goes_to_another_machine_without_encryption_is_said(
    url: str, said: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(endpoint, "_listed", lambda *_: ["m"])
    Endpoint.opened(f"{url}#m")
    assert not recwarn
    monkeypatch.setenv(endpoint.KEY, SECRET)
    Endpoint.opened(f"{url}#m")
    assert [url in (text := str(one.message)) and "without encryption" in text for one in recwarn] == [True] * said
    assert not any(SECRET in str(one.message) for one in recwarn)


@pytest.mark.parametrize("fault", [(429, {}, {"Retry-After": "0.001"}), (503, {"error": "busy"}, {}), (500, {}, {})])
def test_a_server_that_is_busy_is_asked_again(fault: Any, echo: ReplyServer) -> None:
    answers = iter([fault, fault, reply("yes")])
    echo.answer = lambda body: next(answers)
    assert Endpoint.opened(echo.address).reply("now?", 3) == "yes"
    assert len(echo.asked) == 3


@pytest.mark.parametrize(
    ("answer", "match", "asked"),
    [
        (
            (500, {"error": "no memory"}, {}),
            rf"gave no reply in {TRIES} tries \(500 .*no memory.*the same command",
            TRIES,
        ),
        ((400, {"error": "too long"}, {}), "refuses a question: 400 .*too long", 2),  # also without the penalties
        ((200, {"choices": []}, {}), "does not speak the OpenAI protocol: its answer has no message", 1),
        ((200, [1], {}), "does not speak the OpenAI protocol", 1),
        ((200, {"choices": [{"message": {"content": 7}}]}, {}), "does not speak the OpenAI protocol", 1),
        (
            choice({"content": None, "tool_calls": [{"function": {"name": "add"}}]}),
            "into its field tool_calls: the te",
            1,
        ),
        (choice({"content": "I ask:", "tool_calls": [{"id": "1"}]}), "start the server without a parser of calls", 1),
        (choice({"content": "", "function_call": {"name": "add"}}), "into its field function_call", 1),
    ],
)
def test_a_server_without_a_reply_is_no_wrong_answer(answer: Any, match: str, asked: int, echo: ReplyServer) -> None:
    echo.answer = lambda body: answer
    with pytest.raises(EndpointError, match=match):
        Endpoint.opened(echo.address).reply("what?", 3)
    assert len(echo.asked) == asked


@pytest.mark.parametrize(
    ("message", "ended", "text", "warned"),
    [
        ({"content": None, "refusal": "I cannot."}, "stop", "I cannot.", False),
        ({"content": None}, "content_filter", "", True),
        ({"content": None, "reasoning_content": "so ..."}, "stop", "", True),
        ({}, None, "", True),
        ({"content": None, "reasoning_content": "so ..."}, "length", "", False),  # it thought to the last token
        ({"content": ""}, "stop", "", False),
        ({"content": "yes", "tool_calls": [], "refusal": None}, "stop", "yes", False),
    ],
)
def test_a_reply_without_a_text_is_said_unless_it_was_cut(
    message: Any, ended: str | None, text: str, warned: bool, recwarn: pytest.WarningsRecorder
) -> None:
    answers = httpx.MockTransport(lambda request: httpx.Response(200, json=choice(message, finish_reason=ended)[1]))
    assert Endpoint("http://x/v1", "m", httpx.Client(transport=answers)).reply("what?", 3) == text
    said = f"gave a reply whose content is null (finish_reason {ended}): it counts as an empty reply"
    assert [said in str(one.message) for one in recwarn] == [True] * warned


def test_a_reply_that_a_filter_cut_is_said() -> None:
    cut = httpx.MockTransport(
        lambda request: httpx.Response(200, json=choice({"content": "The ca"}, finish_reason="content_filter")[1])
    )
    with pytest.warns(UserWarning, match="a filter of the server cut a reply"):
        assert Endpoint("http://x/v1", "m", httpx.Client(transport=cut)).reply("what?", 3) == "The ca"


def test_a_terminal_obeys_no_codes_of_a_server() -> None:
    """Python prints the error as it is."""
    answers = httpx.MockTransport(lambda request: httpx.Response(400, text="\x1b]0;owned\x07"))
    with pytest.raises(EndpointError, match="refuses a question: 400 ") as caught:
        Endpoint("http://x/v1", "m", httpx.Client(transport=answers)).reply("what?", 3)
    assert str(caught.value).isprintable()


def test_the_key_goes_to_the_server_alone(echo: ReplyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(endpoint.KEY, SECRET)
    one = Endpoint.opened(echo.address)
    one.reply("what?", 3)
    assert echo.keys == [f"Bearer {SECRET}"]
    assert SECRET not in repr(one)
    echo.answer = lambda body: (403, {"error": f"bad key {SECRET}"}, {})
    with pytest.raises(EndpointError, match=r"bad key \.\.\.") as caught:
        one.reply("what?", 3)
    assert SECRET not in str(caught.value)
    echo.answer, echo.models = (
        (lambda body: reply(f"I was sent {SECRET}")),
        (200, {"data": [{"id": f"m-{SECRET}"}]}, {}),
    )
    assert one.reply("what?", 3) == "I was sent ..."  # it is written to files, and to MLflow
    assert Endpoint.opened(echo.address.partition("#")[0]).model == "m-..."
    monkeypatch.setenv(endpoint.KEY, "EMPTY")
    echo.models = (200, {"data": [{"id": "m"}]}, {})
    echo.answer = lambda body: reply("the set is EMPTY")
    assert Endpoint.opened(echo.address.partition("#")[0]).reply("what?", 3) == "the set is EMPTY"


@pytest.mark.parametrize(
    ("models", "address", "match"),
    [
        (None, "http://127.0.0.1:9/v1#m", r"no server answers at http://127\.0\.0\.1:9/v1 \(ConnectError\): start it"),
        (None, "http://127.0.0.1:99999/v1#m", "no server answers at"),
        (None, "http://127.0.0.1:9/v1#", "write NAME=http://HOST:PORT/v1#MODEL"),
        (None, f"http://me:{SECRET}@127.0.0.1:9/v1#m", r"--model http://\.\.\.127"),
        (None, f"http://127.0.0.1:9/v1?key={SECRET}#m", r"--model http://127\.0\.0\.1:9/v1\.\.\.: write NAME="),
        ((401, {}, {}), "", r"refuses the key \(401\): set OPENAI_API_KEY in the environment"),
        (
            (503, {"error": "loading"}, {}),
            "",
            r"the server at http\S+ is not ready \(503\): look at it, try again later",
        ),
        ((200, {"data": [{"id": "tony"}]}, {}), "", r"unknown model 'tiny': did you mean 'tony'"),
    ],
)
def test_a_wrong_address_is_refused_before_anything_is_asked(
    models: Any, address: str, match: str, echo: ReplyServer
) -> None:
    echo.models = models or echo.models
    with pytest.raises(ConfigError, match=match) as caught:
        Endpoint.opened(address or echo.address)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("models", [(404, {}, {}), (200, {"models": 3}, {}), (200, [], {})])
def test_a_server_that_does_not_list_its_models_is_believed(models: Any, echo: ReplyServer) -> None:
    echo.models = models
    assert Endpoint.opened(echo.address).reply("a", 1) == "A"


@pytest.mark.parametrize("prefix", ["", "there="])
def test_the_only_model_of_a_server_needs_no_name(prefix: str, echo: ReplyServer, tmp_path: Path) -> None:
    base = read_base(str(model_folder(tmp_path / "base")))
    (model,) = read_models([prefix + echo.address.partition("#")[0]], base, load_tokenizer(base.folder))
    assert (model.name, model.address) == (prefix[:-1] or "tiny", echo.address)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["tiny", "large"], "name one of the server's models, .*#MODEL: it has tiny, large"),
        ([], "it does not list them"),
    ],
)
def test_a_server_of_several_models_needs_a_name(names: list[str], match: str, echo: ReplyServer) -> None:
    echo.models = (200, {"data": [{"id": name} for name in names]}, {})
    with pytest.raises(ConfigError, match=match):
        Endpoint.opened(echo.address.partition("#")[0])


def test_suites_that_need_probabilities_alone_are_refused_first(echo: ReplyServer, tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"no suite of drift, text is measured by replies: add new, kept, instr"):
        measure(base, [f"there={echo.address}"], suites=["drift", "text"], root=tmp_path / "mlruns")
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.slow
def test_the_same_model_here_and_on_a_server_has_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(endpoint.KEY, SECRET)
    base, here = model_folder(tmp_path / "base"), model_folder(tmp_path / "here", noise=0.2)
    changes = {**SMALL, "kept.tasks": ["capitals"]}
    with serving(of_model(*load_base(here))) as server:
        models = [f"here={here}", f"there={server.address}"]
        found = measure(
            base, models, root=tmp_path / "mlruns", changes=changes, precision="fp32", say=lambda text: None
        )
        asked = len(server.asked)
        again = measure(
            base, models, root=tmp_path / "mlruns", changes=changes, precision="fp32", say=lambda text: None
        )
        assert asked < WORKERS
        assert len(server.asked) == 2 * asked  # whether it is the same model still
    assert found.failed == again.failed == {}
    assert set(found.left_out["there"]) == {"drift", "text", "alignment", "kept/plain", "kept/chat"}
    assert set(found.left_out["there"].values()) == {NO_PROBABILITIES}
    records = {name: read_records(found.folder / "arms" / name / "items-1.jsonl") for name in ("here", "there")}
    assert records["there"] == [r for r in records["here"] if _in_words(r)]
    assert {r.suite for r in records["there"]} == {"kept", "instructions"}
    cards = {result.arm: result.scorecard for result in found.results}
    assert cards["there"]["instructions_accuracy"].value == cards["here"]["instructions_accuracy"].value
    assert "retention" in cards["there"]
    assert "kl" not in cards["there"]
    assert NO_PROBABILITIES in (found.folder / "report.html").read_text()
    written = [file for file in (tmp_path / "mlruns").rglob("*") if file.is_file()]
    assert not [file for file in written if SECRET.encode() in file.read_bytes()]


@pytest.mark.slow
def test_a_server_that_keeps_thoughts_apart_may_have_no_token_left_for_the_reply(tmp_path: Path) -> None:
    """vLLM with --reasoning-parser: `content` is null, and each answer wrong."""
    base, changes = model_folder(tmp_path / "base"), {"kept.items": 4, "kept.tasks": ["capitals"], "bootstrap": 100}
    settings: dict[str, Any] = {"suites": ["kept"], "changes": changes, "precision": "fp32"}
    message = {"role": "assistant", "content": None, "reasoning_content": "The user asks for"}
    with serving(lambda body: (200, {"choices": [{"message": message, "finish_reason": "length"}]}, {})) as server:
        found = measure(base, [f"r1={server.address}"], root=tmp_path / "mlruns", say=lambda text: None, **settings)
    (said,) = (note for note in found.report.notes if "thoughts" in note)
    assert said.startswith("r1: 4 of 4 free replies say nothing, or are cut off in their thoughts, and count as wrong:")
    own = tmp_path / "own.jsonl"  # without options, so that `kept.generated` has no effect: nobody gave it
    own.write_text("".join(f'{{"question": "{i} + 1 =", "answer": "{i + 1}"}}\n' for i in range(4)))
    settings["changes"] = {**changes, "kept.tasks": [str(own)]}
    with serving(lambda body: reply("2")) as server:
        (result,) = measure(base, [server.address], root=tmp_path / "mlruns", say=lambda text: None, **settings).results
    assert result.scorecard["kept_accuracy"].value == 0.25


def _in_words(record: Record) -> bool:
    return record.suite == "instructions" or (record.suite == "kept" and record.form not in ("plain", "chat"))
