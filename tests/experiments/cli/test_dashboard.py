"""The server of optuna-dashboard answers requests to this machine alone."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.cli.dashboard import only_local


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"HTTP_HOST": "127.0.0.1:8080"}, "200 OK"),
        ({"HTTP_HOST": "localhost:8080", "HTTP_ORIGIN": "http://localhost:8080"}, "200 OK"),
        ({"HTTP_HOST": "LOCALHOST"}, "200 OK"),
        ({"HTTP_HOST": "evil.com"}, "403 Forbidden"),
        ({"HTTP_HOST": "evil.com:8080"}, "403 Forbidden"),
        ({"HTTP_HOST": "127.0.0.1.evil.com"}, "403 Forbidden"),
        ({"HTTP_HOST": "evil.com@127.0.0.1:8080", "HTTP_ORIGIN": "http://evil.com"}, "403 Forbidden"),
        ({"HTTP_HOST": "127.0.0.1:8080", "HTTP_ORIGIN": "http://evil.com"}, "403 Forbidden"),
        ({"HTTP_HOST": "127.0.0.1:8080", "HTTP_ORIGIN": "null"}, "403 Forbidden"),
        ({"HTTP_HOST": "["}, "403 Forbidden"),
        ({}, "403 Forbidden"),
    ],
    ids=str,
)
def test_requests_to_other_hosts_are_refused(headers: dict[str, str], status: str) -> None:
    """A page of the web whose name points to this machine read all studies, and made one."""
    answered: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b""]

    only_local(app)(headers, lambda status, headers: answered.append(status))
    assert answered == [status]
