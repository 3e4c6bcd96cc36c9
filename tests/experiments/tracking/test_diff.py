"""What is noted of changes since the commit is of this repository alone, and has no secrets."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from experiments.tracking import machine
from experiments.tracking.diff import code_diff

FILES = {
    "a.py": "-----BEGIN PRIVATE KEY-----\nMIIS3CRET\nS3CRET/x==\n-----END PRIVATE KEY-----\npwd = 'S3CRET'\nn = 1\n",
    "sub/b.yaml": "password: S3CRET of words\ntoken: 'S3CRET'\neos_token: kept\nlog: {secret: S3CRET, n: 1}\n",
    "c.json": '{"password": "S3CRET", "n": 1}\n',
    ".env": "ANYTHING=S3CRET\n",
    "sub/my-Credentials.txt": "S3CRET\n",
}


def repository(folder: Path, *files: str) -> None:
    git = ["git", "-C", str(folder), "-c", "user.name=me", "-c", "user.email=me@example.org"]
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    for words in (["init", "--quiet"], ["add", *files], ["commit", "--quiet", "-m", "start"]):
        subprocess.run([*git, *words], check=True)


def test_the_repository_of_another_project_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed in an environment inside of it, the bench would log its changes, which are private."""
    place = tmp_path / ".venv" / "lib" / "site-packages"
    place.mkdir(parents=True)
    repository(tmp_path, "private.txt")
    (tmp_path / "private.txt").write_text("secret")
    monkeypatch.setattr(machine, "REPOSITORY", place)
    assert code_diff.__wrapped__() == ""
    monkeypatch.setattr(machine, "REPOSITORY", tmp_path)
    assert "private.txt" in code_diff.__wrapped__()
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "ours")], check=True)
    monkeypatch.setattr(machine, "REPOSITORY", tmp_path / "ours")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as in a hook of the other project
    assert code_diff.__wrapped__() == ""


def test_no_secret_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if a person has git's output in colours, and if the text is cut."""
    repository(tmp_path, *FILES)
    subprocess.run(["git", "-C", str(tmp_path), "config", "color.ui", "always"], check=True)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "REPOSITORY", tmp_path)
    found = code_diff.__wrapped__()
    lines = found.splitlines()
    assert "CRET" not in found
    assert {"+n = 1", "+password: ***", "+eos_token: kept", "+log: {secret: ***, n: 1}"} < set(lines)
    assert [line.rpartition(": ")[2] for line in lines if line.startswith("# changed")] == [
        *(".env", "sub/my-Credentials.txt")
    ]
    for size in range(1, len(found), 7):
        monkeypatch.setattr("experiments.tracking.diff.MAX_DIFF", size)
        assert "CRET" not in code_diff.__wrapped__()
