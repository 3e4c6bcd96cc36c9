"""The code that a grader of the user depends on: its file and the modules of its own, which change its digest."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest

from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest
from experiments.data.grader import Grader
from experiments.data.grader_files import PROGRAM, installed_files, load, own_files
from experiments.data.graders import Function

MAIN = "import json\nfrom parts import rules\n\ndef right(reply, entry):\n    return rules.RIGHT == reply\n"


def folder_of(place: Path, right: str, main: str = MAIN) -> Path:
    """A folder with grader.py, which imports parts/rules.py, which imports words.py; other.py is not imported."""
    (place / "parts").mkdir(parents=True)
    (place / "grader.py").write_text(main)
    (place / "parts" / "__init__.py").write_text("")
    (place / "parts" / "rules.py").write_text("import words\nfrom . import names\nRIGHT = words.RIGHT\n")
    (place / "parts" / "names.py").write_text("")
    (place / "words.py").write_text(f"RIGHT = {right!r}\n")
    (place / "other.py").write_text("")
    return place


def grader(folder: Path) -> Function:
    return Function(function=f"{folder / 'grader'}:right")


def test_all_modules_of_its_own_are_found(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a")
    found = [str(path.relative_to(folder)) for path in own_files(folder / "grader.py")]
    assert found[0] == "grader.py"
    assert sorted(found[1:]) == ["parts/__init__.py", "parts/names.py", "parts/rules.py", "words.py"]


@pytest.mark.parametrize("name", ["grader.py", "parts/__init__.py", "parts/rules.py", "parts/names.py", "words.py"])
def test_an_edit_of_any_of_them_is_another_grader(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, "a")
    before = grader(folder).digest()
    (folder / "other.py").write_text("# of nobody\n")
    assert grader(folder).digest() == before
    (folder / name).write_text((folder / name).read_text() + "# edited\n")
    assert grader(folder).digest() != before


def test_a_grader_without_modules_of_its_own_has_the_digest_that_older_runs_noted(tmp_path: Path) -> None:
    (tmp_path / "grader.py").write_text("def right(reply, entry):\n    return True\n")
    made = grader(tmp_path)
    assert made.digest() == short_digest(Grader.digest(made), (tmp_path / "grader.py").read_text())


def test_each_grader_imports_its_own_modules_as_they_are_now(tmp_path: Path) -> None:
    """Two folders have modules of one name, and one is edited: Python keeps the first that it imported."""
    one, other = folder_of(tmp_path / "one", "a"), folder_of(tmp_path / "other", "b")
    assert [grader(folder)("a", {}) for folder in (one, other)] == [1.0, 0.0]
    assert [grader(folder)("b", {}) for folder in (one, other)] == [0.0, 1.0]
    (other / "words.py").write_text("RIGHT = 'c'\n")
    assert [grader(other)(reply, {}) for reply in "bc"] == [0.0, 1.0]
    assert str(other) not in sys.path
    assert not [*tmp_path.rglob("*.pyc")], "a compiled file of the same second and size counts as that of an edited one"


def test_a_module_of_that_name_that_somebody_else_has_imported_is_not_the_graders(tmp_path: Path) -> None:
    """A notebook has imported its own `words`, Python its `statistics`: both keep theirs, the grader has its own."""
    folder = folder_of(tmp_path, "a", MAIN.replace("import json", "import statistics\nassert statistics.MINE"))
    (folder / "statistics.py").write_text("MINE = True\n")
    theirs = ModuleType("words")
    theirs.RIGHT = "theirs"  # type: ignore[attr-defined]
    sys.modules["words"] = theirs
    try:
        assert [grader(folder)(reply, {}) for reply in ("a", "theirs")] == [1.0, 0.0]
        assert sys.modules["words"] is theirs
        assert sys.modules["statistics"] is statistics
    finally:
        del sys.modules["words"]


@pytest.mark.parametrize("package", PROGRAM)
def test_a_grader_next_to_the_bench_may_import_it(tmp_path: Path, package: str) -> None:
    """Its modules would be imported twice: an error of the one copy is not caught as that of the other."""
    (tmp_path / package).symlink_to(Path(__file__).parents[3] / package)
    (tmp_path / "grader.py").write_text(f"import {package}\n\ndef right(reply, entry):\n    return {package}\n")
    assert own_files(tmp_path / "grader.py") == [tmp_path / "grader.py"]
    before = dict(sys.modules)
    found = load(tmp_path / "grader.py").right("a", {})
    assert found is before[package]
    assert {name: sys.modules[name] for name in before} == before
    assert installed_files(f"{package}.__init__")[1:] == []


def test_a_run_goes_on_with_the_code_that_it_began_with(tmp_path: Path) -> None:
    """Its digest was noted at the start: replies of a later arm must not be graded by other code under it."""
    folder = folder_of(tmp_path, "a")
    scorer = grader(folder).scorer()
    (folder / "grader.py").write_text("def right(reply, entry):\n    return False\n")
    (folder / "words.py").write_text("RIGHT = 'b'\n")
    assert [scorer(reply, {}) for reply in "ab"] == [1.0, 0.0]
    assert [grader(folder).scorer()(reply, {}) for reply in "ab"] == [0.0, 0.0]


def test_an_installed_module_counts_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "graders_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rules.py").write_text("import json\nfrom graders_of_mine.words import RIGHT\n\ndef right(r, e): ...\n")
    (package / "words.py").write_text("RIGHT = 1\n")
    (tmp_path / "unrelated.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert [path.name for path in installed_files("graders_of_mine.rules")] == ["rules.py", "__init__.py", "words.py"]
    before = Function(function="graders_of_mine.rules:right").digest()
    (package / "words.py").write_text("RIGHT = 2\n")
    assert Function(function="graders_of_mine.rules:right").digest() != before
    assert installed_files("no_such_module_of_mine") == installed_files("") == []


def test_an_installed_module_that_was_edited_needs_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python keeps what it imported: grades of the old code were cached under the digest of the new one."""
    package = tmp_path / "edited_graders"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rules.py").write_text("from edited_graders.words import RIGHT\n\ndef right(r, e): return r == RIGHT\n")
    (package / "words.py").write_text("RIGHT = 'a'\n")
    monkeypatch.syspath_prepend(tmp_path)
    one = Function(function="edited_graders.rules:right")
    assert [one.scorer()(reply, {}) for reply in "ab"] == [1.0, 0.0]
    (package / "words.py").write_text("RIGHT = 'b'\n")
    with pytest.raises(ConfigError, match=r"words\.py has changed since this process imported it: restart"):
        Function(function="edited_graders.rules:right").scorer()
    (package / "words.py").write_text("RIGHT = 'a'\n")
    assert Function(function="edited_graders.rules:right").scorer()("a", {}) == 1


def test_code_that_cannot_be_read_is_a_file_without_imports(tmp_path: Path) -> None:
    (tmp_path / "grader.py").write_text("import words\nthis is no Python\n")
    (tmp_path / "words.py").write_text("")
    assert own_files(tmp_path / "grader.py") == [tmp_path / "grader.py"]
