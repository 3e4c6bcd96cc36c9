"""A small server that speaks the OpenAI protocol: a tiny model answers, or what a test makes it answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.models.tokens import end_of_turn

Answer = tuple[int, Any, dict[str, str]]  # status, body, headers
MODEL = "tiny"


class ReplyServer(ThreadingHTTPServer):
    """asked: bodies of the requests for a reply. keys: their Authorization headers."""

    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.asked, self.keys = answer, list[dict[str, Any]](), list[str | None]()
        self.models: Answer = (200, {"data": [{"id": MODEL}]}, {})

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1#{MODEL}"


class _Handler(BaseHTTPRequestHandler):
    server: ReplyServer

    def do_GET(self) -> None:
        self._send(self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.append(self.headers.get("Authorization"))
        self.server.asked.append(body)
        self._send(self.server.answer(body))

    def _send(self, answer: Answer) -> None:
        status, body, headers = answer
        text = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(text))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        pass


def reply(text: str) -> Answer:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[ReplyServer]:
    with ReplyServer(answer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Callable[[dict[str, Any]], Answer]:
    """Return the greedy replies of a model, one request after the other, as a server of models gives them."""
    lock, end = threading.Lock(), end_of_turn(tokenizer)

    def answer(body: dict[str, Any]) -> Answer:
        assert body["temperature"] == 0
        inputs = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        with lock, torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=body["max_tokens"], do_sample=False, eos_token_id=end)
        ids = out[0, inputs["input_ids"].shape[1] :]
        return reply(str(tokenizer.decode(ids, skip_special_tokens=True)))

    return answer
