"""No password of a store's URI is written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.cli.console import stop
from experiments.common.errors import StudyError
from experiments.runs.arm_training import reason
from experiments.studies.locks import shown
from experiments.studies.storage import storage_url
from experiments.studies.trial import TrialFailed
from experiments.tracking.uri import page, without_password

PLAIN = "Basic understanding, hf_hub_download_of_a_file, sk-learn, password="

CODE = "eos_token='</s>', token = tokens[0], max_tokens: '5', key='a', got 'password', 'name', if not secret: x = 'y'"
WORDS = "password: str\npassword = read_password()\nsecret = config.x1.secret2\nf('x', 'secret'), sigma=1"


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
        ("http//bob:S3CRET@host:9", "http//bob:***@host:9"),  # mistyped
        ("got unsupported URI 'postgres:/bob:S3CRET@db/x'", "got unsupported URI 'postgres:/bob:***@db/x'"),
        ("models:/name@champion, me/name@main, a/b:c", "models:/name@champion, me/name@main, a/b:c"),
        ("http://h?access_token=S3CRET", "http://h?access_token=***"),
        ("http://h?a?b=1&x?my_KEY=S3CRET", "http://h?a?b=1&x?my_KEY=***"),
        ("sqlite:////a/b@c/mlflow.db", "sqlite:////a/b@c/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://me@host:5000", "http://me@host:5000"),
        ("https://S3CRETS3CRETS3CRET12@host:5000", "https://***@host:5000"),
        ("mssql:///?odbc_connect=UID%3Dme%3BPWD%3DS3CRET%3B", "mssql:///?odbc_connect=UID%3Dme%3BPWD%3D***%3B"),
        ("connection failed: host=db password=S3CRET user=me", "connection failed: host=db password=*** user=me"),
        ("401 for hf_S3CRETS3CRETS3CRETS3 at the Hub", "401 for hf_*** at the Hub"),
        ("the key sk-proj-S3CRET_S3CRET_S3CRET is wrong", "the key sk-*** is wrong"),
        ("{'Authorization': 'Bearer S3CRETS3CRET.x'}", "{'Authorization': 'Bearer ***'}"),
        ("Authorization: Basic Ym9iOlMzQ1JFVA==", "Authorization: Basic ***"),
        ("+export MLFLOW_TRACKING_PASSWORD=S3CRET", "+export MLFLOW_TRACKING_PASSWORD=***"),  # a line of a diff
        ("-OPENAI_API_KEY='S3CRET' PGPASSWORD=S3CRET", "-OPENAI_API_KEY='***' PGPASSWORD=***"),
        ('+os.environ["MLFLOW_TRACKING_PASSWORD"] = "S3CRET"', '+os.environ["MLFLOW_TRACKING_PASSWORD"] = "***"'),
        (
            r'+    "os.environ[\"HF_TOKEN\"] = \"S3CRET\"\n",',
            r'+    "os.environ[\"HF_TOKEN\"] = \"***\"\n",',
        ),  # a notebook
        (
            "Client(api_key=\"S3CRET\", aws_secret_access_key='S3CRET')",
            "Client(api_key=\"***\", aws_secret_access_key='***')",
        ),
        ('{"password": "S3CRET", "n": 1}', '{"password": "***", "n": 1}'),
        ('+os.environ.setdefault("HF_TOKEN", "S3CRET")', '+os.environ.setdefault("HF_TOKEN", "***")'),
        ("+  db_password: S3CRETS3", "+  db_password: ***"),  # of YAML
        ("aws_secret_access_key = S3CRETS3\n x", "aws_secret_access_key = ***\n x"),  # of INI
        ("%env OPENAI_API_KEY S3CRETS3", "%env OPENAI_API_KEY ***"),
        ('{"X-API-Key": "S3CRET"}', '{"X-API-Key": "***"}'),
        ("https://b.s3/x.json?X-Amz-Signature=S3CRET&a=1", "https://b.s3/x.json?X-Amz-Signature=***&a=1"),
        ("https://b.blob/x.json?sv=20&sig=S3CRET", "https://b.blob/x.json?sv=20&sig=***"),
        ("AccountKey=S3CRET;Endpoint=x", "AccountKey=***;Endpoint=x"),
        (f'wandb.login(key="{"5a" * 20}")', 'wandb.login(key="***")'),
        ("http://bob:S3'CR\"ET@127.0.0.1:9 does not", "http://bob:***@127.0.0.1:9 does not"),
        ('{"a":"http://h:9","b":"x@y"}', '{"a":"http://h:9","b":"x@y"}'),
        ("http://h?auth=S3CRET&a=1#access_token=S3CRET", "http://h?auth=***&a=1#access_token=***"),
        ('key = "AKIAS3CRETS3CRETS3CR"', 'key = "AKIA***"'),
        ("npm_S3CRETS3CRETS3CRETS3, pypi-S3CRET_S3CRET_S3CRET", "npm_***, pypi-***"),
        ("eyJS3CRETS3CRET.eyJS3CRETS3.S3CRET_x", "eyJ***"),
        ("https://hooks.slack.com/services/T0S3CRET/B0/S3CRET", "https://hooks.slack.com/services/***"),
        ("+-----BEGIN PRIVATE KEY-----\n+MIIS3/CR==\n+-----END P", "+-----BEGIN PRIVATE KEY-----***-----END P"),
        ('{"private_key": "-----BEGIN K-----\\nMIIS3CRET\\n--"}', '{"private_key": "***"}'),
        ('{"token": "S3CRETS3CRETS3CR", "pwd": "S3CRET"}', '{"token": "***", "pwd": "***"}'),
        ('{"token": "<|im_end|>", "pad_token": "x"}', '{"token": "<|im_end|>", "pad_token": "x"}'),
        ('{"Authorization": "Basic S3CRETS3CR=="}', '{"Authorization": "Basic ***"}'),
        ('get(u, auth=("bob", "S3CRET"))', 'get(u, auth=("bob", "***"))'),
        ("curl -u bob:S3CRET --hf-token S3CRET x", "curl -u bob:*** --hf-token *** x"),
        ("X-Api-Key: S3CRETS3", "X-Api-Key: ***"),
        ("password = \"S3'CRET of words\", x='y'", "password = \"***\", x='y'"),
        ('password: str | None = f"S3CRET"', 'password: str | None = f"***"'),
        ('PASSWORD: Final = """S3CRET"""', 'PASSWORD: Final = """***"""'),
        ("DB_PASS='S3CRET' MYSQL_PWD=S3CRET", "DB_PASS='***' MYSQL_PWD=***"),
        ("- POSTGRES_PASSWORD: S3CRET\nENV HF_TOKEN S3CRET", "- POSTGRES_PASSWORD: ***\nENV HF_TOKEN ***"),
        (PLAIN, PLAIN),
        (CODE, CODE),
        (WORDS, WORDS),
    ],
)
def test_a_password_is_replaced(uri: str, shown: str) -> None:
    assert without_password(uri) == shown
    assert without_password(shown) == shown


def test_no_reason_that_is_kept_has_a_secret() -> None:
    """Of an arm (result, report, MLflow) and of a trial (storage, report)."""
    error = OSError("no answer of http://bob:S3CRET@proxy:80 with hf_S3CRETS3CRETS3CRETS3")
    wanted = "OSError: no answer of http://bob:***@proxy:80 with hf_***"
    assert reason(error) == wanted
    assert str(TrialFailed(f"{type(error).__name__}: {error}")) == wanted


def test_no_storage_url_is_shown_with_its_secret(tmp_path: Path) -> None:
    shared = "postgresql://db/x?user=me&password=S3CRET"
    assert shown(shared) == "postgresql://db/x?password=***&user=me"
    with pytest.raises(StudyError, match="its port is no number") as found:
        storage_url(tmp_path, "postgresql://bob@h:S3CRET/x")
    assert "S3CRET" not in str(found.value)


def test_no_error_on_the_screen_has_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    assert stop(1, "cannot reach http://bob:S3CRET@proxy:80") == 1
    assert capsys.readouterr().err == "error: cannot reach http://bob:***@proxy:80\n"


def test_a_browser_gets_no_login() -> None:
    assert page("http://bob:S3CRET@127.0.0.1:9/x") == page("http://127.0.0.1:9/x") == "http://127.0.0.1:9/x"
