"""Expansions on the Hugging Face Hub: uploaded by every way that transformers has, loaded by name and revision."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import Trainer, TrainingArguments

import ctrl
from ctrl import hub
from ctrl.checkpoint import FILES
from tests.helpers.tiny_llama import IDS, disturbed, sequences, tiny


class FakeHub:
    """A folder in place of the Hub: repositories and what was asked of them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.asked = root, []
        monkeypatch.setattr(HfApi, "create_repo", self.create)
        monkeypatch.setattr(HfApi, "upload_folder", self.upload)
        monkeypatch.setattr(HfApi, "file_exists", self.has)
        monkeypatch.setattr(HfApi, "create_branch", self.branch)
        monkeypatch.setattr(HfApi, "hf_hub_download", lambda _, *names, revision: str(self.at(*names, revision)))
        monkeypatch.setattr(hub, "snapshot_download", self.download)

    def create(self, repo_id: str, **kwargs: Any) -> Any:
        self.asked.append({"created": repo_id, **kwargs})
        return type("Url", (), {"repo_id": repo_id if "/" in repo_id else f"me/{repo_id}"})

    def at(self, repo_id: str, filename: str, revision: str | None) -> Path:
        return self.root / repo_id / (f"@{revision}/{filename}" if revision else filename)

    def branch(self, repo_id: str, branch: str, exist_ok: bool) -> None:
        assert exist_ok
        if not self.at(repo_id, "", branch).exists():
            shutil.copytree(self.root / repo_id, self.at(repo_id, "", branch), ignore=shutil.ignore_patterns("@*"))

    def upload(self, repo_id: str, folder_path: Path, allow_patterns: list[str], **kwargs: Any) -> None:
        self.asked.append({"uploaded": repo_id, **kwargs})
        for name in allow_patterns:
            self.at(repo_id, name, kwargs.get("revision")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder_path / name, self.at(repo_id, name, kwargs.get("revision")))

    def has(self, repo_id: str, filename: str, revision: str | None) -> bool:
        return self.at(repo_id, filename, revision).exists()

    def download(self, repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append({"downloaded": repo_id, "revision": revision})
        if not (self.root / repo_id).is_dir():
            raise ValueError("401 Client Error: Repository Not Found")
        return str(self.root / repo_id)


@pytest.fixture
def repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(tmp_path / "hub", monkeypatch)


def test_save_pretrained_with_push_to_hub_uploads(repositories: FakeHub, tmp_path: Path) -> None:
    model = disturbed()
    model.save_pretrained(
        tmp_path / "mine", push_to_hub=True, max_shard_size="5GB", private=True, commit_message="first"
    )
    assert repositories.asked == [
        {"created": "mine", "private": True, "exist_ok": True},
        {"uploaded": "me/mine", "commit_message": "first"},
    ]
    assert sorted(p.name for p in (repositories.root / "me" / "mine").iterdir()) == ["README.md", *sorted(FILES)]
    model.add_model_tags("trl")
    model.save_pretrained(tmp_path / "mine", push_to_hub=True)
    assert ModelCard.load(tmp_path / "mine" / "README.md").data.tags == ["control-llm", "trl"]
    repositories.asked[2:] = []
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="they/theirs", is_main_process=False)
    assert len(repositories.asked) == 2  # the main process uploads
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="they/theirs", create_pr=True)
    assert repositories.asked[-1] == {"uploaded": "they/theirs", "create_pr": True}


def test_push_to_hub_uploads_the_expansion_and_keeps_a_card_that_is_there(repositories: FakeHub) -> None:
    model = disturbed()
    model.add_model_tags(["trl", "math"])  # as TRL's trainers do
    model.push_to_hub("me/mine", tags=["math"], private=True, commit_message="first", max_shard_size="1MB")
    assert repositories.asked == [
        {"created": "me/mine", "private": True, "exist_ok": True},
        {"uploaded": "me/mine", "commit_message": "first"},
    ]
    written = repositories.root / "me" / "mine" / "README.md"
    assert ModelCard.load(written).data.tags == ["control-llm", "trl", "math"]
    disturbed(structure="stack").push_to_hub("me/mine", tags="sums")  # our own card names what is there now
    assert "| structure | stack |" in written.read_text()
    assert ModelCard.load(written).data.tags == ["control-llm", "sums"], "a text is one tag, not one for each letter"
    written.write_text("my own")
    model.push_to_hub("me/mine")
    assert written.read_text() == "my own"
    assert torch.equal(ctrl.load(tiny().eval(), "me/mine")(IDS).logits, model(IDS).logits)


def test_a_card_is_that_of_the_branch(repositories: FakeHub) -> None:
    """A new branch begins as main. The card of main was looked at, and one of the branch's own replaced."""
    model, card = disturbed(), repositories.root / "me" / "mine" / "@dev" / "README.md"
    model.push_to_hub("me/mine")
    model.push_to_hub("me/mine", revision="dev")
    card.write_text("my own")
    model.push_to_hub("me/mine", revision="dev")
    assert card.read_text() == "my own"
    (repositories.root / "me" / "mine" / "README.md").write_text("that of main")
    model.push_to_hub("me/mine", revision="new")
    assert (card.parents[1] / "@new" / "README.md").read_text() == "that of main"


@pytest.mark.parametrize(("address", "revision"), [("me/mine", None), ("me/mine@v1.0", "v1.0")])
def test_load_takes_a_repository_and_a_revision(
    address: str, revision: str | None, repositories: FakeHub, tmp_path: Path
) -> None:
    model = disturbed()
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="me/mine")
    assert torch.equal(ctrl.load(tiny().eval(), address)(IDS).logits, model(IDS).logits)
    assert repositories.asked[-1] == {"downloaded": "me/mine", "revision": revision}


def test_a_folder_comes_before_a_repository(
    repositories: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ctrl.save(disturbed(), "me/mine")
    ctrl.load(tiny(), "me/mine")
    with pytest.raises(ctrl.CheckpointError, match=r"no control_config\.json"):
        ctrl.load(tiny(), Path("me/other"))  # a path is never a repository
    assert not repositories.asked


def test_a_name_that_nobody_has_is_an_error_that_says_where_it_was_looked_for(repositories: FakeHub) -> None:
    with pytest.raises(ctrl.CheckpointError, match=r"no folder runs/mine, and the Hugging Face Hub .* Not Found"):
        ctrl.load(tiny(), "runs/mine")
    assert issubclass(RepositoryNotFoundError, Exception)
    with pytest.raises(ctrl.CheckpointError, match=r"no control_config\.json"):
        ctrl.load(tiny(), "a/b/c")  # three parts: no repository


@pytest.mark.parametrize("given", [{"variant": "fp16"}, {"distributed_checkpoint": True}])
def test_what_an_expansion_cannot_do_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ctrl.ConfigError, match=f"the folder of an expansion has no {next(iter(given))}"):
        disturbed().save_pretrained(tmp_path, **given)
    assert not list(tmp_path.iterdir())
    disturbed().save_pretrained(tmp_path, variant=None, max_shard_size="1MB", save_original_format=True)


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_what_trainer_uploads_in_the_middle_of_a_training_loads(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It uploads the weights and config.json of a checkpoint, but no file that it does not know."""
    uploads: list[Path] = []

    def upload(_: Any, folder_path: Path, **kwargs: Any) -> Any:
        uploads.append(tmp_path / f"upload-{len(uploads)}")
        shutil.copytree(folder_path, uploads[-1], ignore=shutil.ignore_patterns("checkpoint-*", "last-checkpoint"))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: type("Url", (), {"repo_id": "me/math"}))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    model = ctrl.expand(tiny(), ctrl.ControlConfig(layers=2))
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=2, save_steps=2, learning_rate=1e-2, push_to_hub=True, hub_model_id="me/math",
        hub_strategy=strategy, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=sequences()).train()  # type: ignore[arg-type]
    assert not (uploads[0] / "control_config.json").exists()  # a checkpoint as it is may follow
    loaded = ctrl.load(tiny().eval(), uploads[0])
    assert torch.equal(loaded.eval()(IDS).logits, model.eval()(IDS).logits)
    assert not torch.equal(loaded(IDS).logits, tiny().eval()(IDS).logits)
