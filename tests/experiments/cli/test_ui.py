"""`ui`: ports, links and servers that end together; tests/desk_browser/ has what a browser shows."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from experiments.cli import main as cli
from experiments.cli.servers import free_port
from experiments.cli.ui import DASHBOARD, has_screen, mlflow_links, optuna_command, optuna_links
from experiments.common.errors import ConfigError, StudyError
from experiments.studies.storage import storage_url
from experiments.tracking.tracker import Tracker
from tests.helpers.served_ui import freed, served
from tests.helpers.toy_study import open_store


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as own:
        yield int(own.getsockname()[1])


def test_a_port_that_is_taken(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.main(["ui", "--root", str(tmp_path), "--port", str(taken)]) == 1
    said = capsys.readouterr().err
    assert f"port {taken} is in use. If that is this UI already, open http://127.0.0.1:{taken}; else leave" in said
    assert taken < free_port(taken) < taken + 100


def test_a_server_that_runs_already_has_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert cli.main(["ui", "--root", str(tmp_path), "--port", "5001"]) == 2
    assert "--port 5001 has no effect: MLFLOW_TRACKING_URI names a server" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "65536", "-1", "five", "5e3"])
def test_what_is_no_port(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["ui", f"--port={text}"])
    assert f"'{text}' is no port: give a number from 1 to 65535" in capsys.readouterr().err


class TestOptuna:
    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("STUDY_STORAGE", raising=False)
        real = importlib.util.find_spec
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name == DASHBOARD else real(name))

    def test_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="not installed: pip install optuna-dashboard"):
            optuna_command(tmp_path)

    def test_no_study_yet(self, tmp_path: Path) -> None:
        with pytest.raises(StudyError, match=r"there is no .*optuna\.db; leave --optuna out"):
            optuna_command(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_the_storage_of_the_root(self, tmp_path: Path) -> None:
        (tmp_path / "optuna.db").touch()
        line = optuna_command(tmp_path)(8081)
        assert f"sqlite:///{tmp_path}/optuna.db" in line
        assert line.endswith("--port 8081")
        (tmp_path / "optuna-artifacts").mkdir()
        assert optuna_command(tmp_path)(8081).endswith(f" --artifact-dir {tmp_path}/optuna-artifacts")

    def test_studies_in_another_storage(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The first one's is opened if the root has none, and those of others are named."""
        own, files = tmp_path / "own", {}
        for name in ("mine", "yours"):
            (own / name).mkdir(parents=True)
            files[name] = open_store(own / name).url
            (tmp_path / "studies" / name).mkdir(parents=True)
            (tmp_path / "studies" / name / "study.yaml").write_text(f"name: {name}\nstorage: {files[name]}")

        def opened() -> tuple[str, str]:
            monkeypatch.setenv("STUDY_STORAGE", "")  # what is set in it is undone after the test
            optuna_command(tmp_path)
            optuna_links(tmp_path, "http://127.0.0.1:8080")
            return storage_url(tmp_path, None), capsys.readouterr().out

        url, said = opened()
        assert url == files["mine"]
        assert "toy" in said
        assert "mine is in" not in said
        assert f"yours is in another storage: STUDY_STORAGE={files['yours']} " in said
        open_store(tmp_path)
        url, said = opened()
        assert url == f"sqlite:///{tmp_path}/optuna.db"
        for name, own_url in files.items():
            assert f"{name} is in another storage: STUDY_STORAGE={own_url} " in said

    def test_the_password_is_in_no_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STUDY_STORAGE", "postgresql+psycopg://bob:S3CRET@host/db")
        line = optuna_command(tmp_path)(8081)
        assert "$STUDY_STORAGE" not in line  # the shell would write the URL into the arguments
        assert "S3CRET" not in line


def test_links_that_cannot_be_prepared_are_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    class Refuses:
        def reap(self) -> None:
            raise RuntimeError("the store http://bob:S3CRET@host/ is read-only\n[SQL: UPDATE runs]")

    assert mlflow_links(Refuses(), "http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    said = capsys.readouterr().out
    assert said.count("warning") == 1
    assert "is read-only): choose one in MLflow" in said
    assert "S3CRET" not in said


def test_a_browser_needs_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not has_screen()
    monkeypatch.setenv("DISPLAY", ":0")
    assert has_screen()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with Tracker(tmp_path, "demo").run("full 0.01", "arm", params={"method": "full", "learning_rate": 0.01}) as run:
        run.log_metrics({"gain": 0.25, "retention": 0.5, "kl": 0.125, "nfr": 0.0625}, 2)
    return tmp_path


@pytest.mark.slow
def test_both_servers_end_at_ctrl_c(store: Path) -> None:
    pytest.importorskip(DASHBOARD, reason="optuna-dashboard is not installed")
    open_store(store)
    with served(store, "--optuna") as (process, said):
        addresses = re.findall(r"(?m)^\S+: (http://127\.0\.0\.1:\d+)$", said)
        assert len(addresses) == 2
        assert re.search(r"demo +charts +\S+/#/experiments/1/runs\?viewStateShareKey=forgetting", said)
        assert "MLflow" in urllib.request.urlopen(addresses[0], timeout=30).read().decode()
        study = re.search(r"toy +(\S+/dashboard/studies/\d+)", said)
        assert study is not None
        assert urllib.request.urlopen(study[1], timeout=30).status == 200
        for address in addresses:  # a page whose name points to this machine
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "evil.com"}), timeout=30)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert all(freed(int(address.rpartition(":")[2])) for address in addresses)


@pytest.mark.slow
def test_no_process_shows_a_store_and_none_stays_after_a_kill(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each URL may have a password, and all users of a machine can read the arguments of a process."""
    pytest.importorskip(DASHBOARD, reason="optuna-dashboard is not installed")
    open_store(store)
    (store / "S3CRET").mkdir()
    for name, variable in (("mlflow.db", "MLFLOW_TRACKING_URI"), ("optuna.db", "STUDY_STORAGE")):
        for file in store.glob(f"{name}*"):  # with what SQLite keeps next to it
            shutil.copy(file, store / "S3CRET" / file.name)
        monkeypatch.setenv(variable, f"sqlite:///{store}/S3CRET/{name}")
    with served(store, "--optuna") as (process, said):
        servers = psutil.Process(process.pid).children(recursive=True)
        assert len(servers) >= 4  # two servers, each with a shell
        shown = [word for one in servers for word in one.cmdline() if "S3CRET" in word]
        assert shown == []
        process.kill()
        process.wait(10)
    assert psutil.wait_procs(servers, timeout=20)[1] == []
    assert "demo" in said
    assert "toy" in said
