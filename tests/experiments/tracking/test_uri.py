"""No password of a store's URI is written down."""

from __future__ import annotations

import pytest

from experiments.tracking.uri import page, without_password


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://bob:S3CRET@127.0.0.1:9", "http://bob:***@127.0.0.1:9"),
        ("http://:S3CRET@host/a?b=c", "http://:***@host/a?b=c"),
        ("postgresql+psycopg://me:S3/CR@ET@db:5432/x", "postgresql+psycopg://me:***@db:5432/x"),
        (
            "postgresql://db/x?user=me&password=S3CRET&sslmode=require",
            "postgresql://db/x?user=me&password=***&sslmode=require",
        ),
        ("API request to http://bob:S3CRET@h:9/api failed (S)", "API request to http://bob:***@h:9/api failed (S)"),
        ("http://h?access_token=S3CRET", "http://h?access_token=***"),
        ("http://h?a?b=1&x?my_KEY=S3CRET", "http://h?a?b=1&x?my_KEY=***"),
        ("sqlite:////a/b@c/mlflow.db", "sqlite:////a/b@c/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_a_password_is_replaced(uri: str, shown: str) -> None:
    assert without_password(uri) == shown
    assert without_password(shown) == shown


def test_a_browser_gets_no_login() -> None:
    assert page("http://bob:S3CRET@127.0.0.1:9/x") == page("http://127.0.0.1:9/x") == "http://127.0.0.1:9/x"
