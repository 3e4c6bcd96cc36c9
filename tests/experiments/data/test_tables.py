"""Files of tables: their kinds, their compression, and one line for each that is damaged."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from experiments.common.errors import ConfigError
from experiments.data.cells import BadRow, cell_text
from experiments.data.files import LocalFile
from experiments.data.items import Text
from experiments.data.tables import parts, rows
from tests.helpers.question_files import COLUMNS, write

ROWS = [{"a": f"x\u2028{i}", "b": [{"c": i}]} for i in range(3)]
LINES = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


def cells(file: Path) -> list[Any]:
    return [row for _, row in rows(file)]


def _zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def _streamed(data: bytes) -> bytes:
    """Compress as programs do that do not know the length at the start."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


class TestCompressed:
    @pytest.mark.parametrize(
        ("ending", "pack"),
        [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", _streamed), (".zst", _zstd)],
    )
    @pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
    def test_lines(self, ending: str, pack: Callable[[bytes], bytes], bom: bytes, tmp_path: Path) -> None:
        file = tmp_path / f"a.jsonl{ending}"
        file.write_bytes(pack(bom + LINES))
        assert cells(file) == ROWS
        assert [where for where, _ in rows(file)] == ["line 1", "line 2", "line 3"]

    @pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
    def test_what_is_damaged(self, ending: str, tmp_path: Path) -> None:
        file = tmp_path / f"a.jsonl{ending}"
        file.write_bytes(b"no such thing")
        with pytest.raises(ConfigError, match=rf"data file .*a.jsonl{ending} cannot be read"):
            cells(file)

    def test_what_was_cut_off(self, tmp_path: Path) -> None:
        file = tmp_path / "a.jsonl.gz"
        file.write_bytes(gzip.compress(LINES * 100)[:-20])
        with pytest.raises(ConfigError, match=r"a.jsonl.gz cannot be read"):
            cells(file)


class TestArrow:
    @pytest.mark.parametrize("kind", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
    def test_files_and_streams(self, kind: Any, tmp_path: Path) -> None:
        file = tmp_path / "a.arrow"
        table = pyarrow.Table.from_pylist(ROWS)
        with kind(str(file), table.schema) as writer:
            writer.write_table(table)
        assert cells(file) == ROWS

    def test_what_a_dataset_saves(self, tmp_path: Path) -> None:
        import datasets

        datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path)
        (file,) = tmp_path.glob("*.arrow")
        assert cells(file) == ROWS

    def test_not_arrow(self, tmp_path: Path) -> None:
        (tmp_path / "a.arrow").write_text("no")
        with pytest.raises(ConfigError, match=r"a.arrow is not Arrow"):
            cells(tmp_path / "a.arrow")

    def test_keys_that_other_rows_have_are_left_out(self, tmp_path: Path) -> None:
        file = tmp_path / "a.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"m": [{"a": 1}, {"b": 2}]}, {"m": None}]), file)
        assert cells(file) == [{"m": [{"a": 1}, {"b": 2}]}, {"m": None}]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "arrow"])
def test_a_column_that_is_there_twice_is_refused(ending: str, tmp_path: Path) -> None:
    """One of the two would be lost."""
    file = tmp_path / f"a.{ending}"
    table = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 3, names=["q", "a", "q"])
    if ending == "parquet":
        pyarrow.parquet.write_table(table, file)
    elif ending == "arrow":
        with pyarrow.ipc.new_stream(str(file), table.schema) as writer:
            writer.write_table(table)
    else:
        file.write_text("q,a,q\nx,x,x\n".replace(",", "\t" if ending == "tsv" else ","))
    with pytest.raises(ConfigError, match="has the column 'q' twice: rename one of them"):
        cells(file)


class TestCsv:
    @pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
    def test_cells_are_texts(self, name: str, mark: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(f'\ufeffa{mark}b\r\n007{mark}"x\r\ny{mark}"\r\n"z"\r\n'.encode())
        assert cells(tmp_path / name) == [{"a": "007", "b": f"x\r\ny{mark}"}, {"a": "z", "b": None}]

    def test_a_column_without_a_name(self, tmp_path: Path) -> None:
        """As pandas writes its index."""
        (tmp_path / "a.csv").write_text(",question,answer\n0,a,b\n")
        assert cells(tmp_path / "a.csv") == [{"": "0", "question": "a", "answer": "b"}]

    def test_a_long_cell(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000)
        assert len(cells(tmp_path / "a.csv")[0]["text"]) == 200_000

    def test_more_cells_than_the_head(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("a,b\n1,2\n1,2,3\n")
        first, second = cells(tmp_path / "a.csv")
        assert first == {"a": "1", "b": "2"}
        assert isinstance(second, BadRow)
        assert str(second).endswith("a.csv, line 3 has more cells than the head")

    def test_joined_tables_each_with_a_byte_order_mark(self, tmp_path: Path) -> None:
        """`cat a.csv b.csv` of what Excel saved: the second head was a question, and its answer."""
        (tmp_path / "a.csv").write_text('\ufeff"a",b\n1,2\n\ufeff"a",b\n\ufeff3,4\n')
        first, head, last = cells(tmp_path / "a.csv")
        assert (first, last) == ({"a": "1", "b": "2"}, {"a": "3", "b": "4"})
        assert str(head).endswith("line 3 repeats the head")
        (tmp_path / "a.jsonl").write_text('\ufeff{"a": 1}\n\ufeff{"a": 2}\n')
        assert cells(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]
        (tmp_path / "a.txt").write_text("\ufeffOne.\n\n\ufeffTwo.\n")
        assert LocalFile(path=str(tmp_path / "a.txt")).examples == (Text("One."), Text("Two."))


class TestLines:
    def test_a_line_that_cannot_be_read_is_a_bad_row(self, tmp_path: Path) -> None:
        file = tmp_path / "a.jsonl"
        file.write_bytes(b'{"a": 1}\n\n{"a": \n\xff\xfe\n[1]\n' + b"[" * 100_000 + b'\n{"a": 2}')
        found = list(rows(file))
        assert [where for where, _ in found] == [f"line {n}" for n in (1, 3, 4, 5, 6, 7)]
        assert [row for _, row in found if not isinstance(row, BadRow)] == [{"a": 1}, {"a": 2}]
        faults = [str(row) for _, row in found if isinstance(row, BadRow)]
        for fault, said in zip(
            faults, ("is not JSON", "is not UTF-8", "must hold an object", "is not JSON"), strict=True
        ):
            assert said in fault

    def test_a_list_of_several_lines_after_blank_ones(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("\n\n " + json.dumps(ROWS, indent=2))
        assert cells(tmp_path / "a.json") == ROWS

    def test_a_list_that_is_not_json(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('[{"a": 1},')
        with pytest.raises(ConfigError, match=r"data file .*a.json is not JSON"):
            cells(tmp_path / "a.json")


ODD = b'{"a": 1}\n\n{"a": \xff}\n{"a": 1, "a": 2}\r\n[1]\n \n{"a": "\xe2\x80\xa8"}'


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b"\xef\xbb\xbf" + ODD),
        ("a.jsonl.gz", gzip.compress(ODD + b"\n", mtime=0)),
        ("a.json", LINES),
        ("a.csv", b"a,b\n1,2\n3,4,5\n6,7\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_parts_of_a_table_are_its_rows(name: str, data: bytes, size: int, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    whole = [(where, str(row)) for where, row in rows(file)]
    assert len(whole) >= 3
    again = pickle.loads(pickle.dumps(list(parts(file, size))))
    assert [(where, str(row)) for part in again for where, row in part.rows()] == whole
    assert max(len(list(part.rows())) for part in again) <= size


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
@pytest.mark.parametrize("size", [2, 100])
def test_the_parts_of_columns_are_rows_that_were_not_read_before(name: str, size: int, tmp_path: Path) -> None:
    table = pyarrow.table({"a": [1, None, 3, 4, 5], "b": [[{"x": 1, "y": None}]] * 5})
    file = tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(table, file, row_group_size=3)
    else:
        kind = pyarrow.ipc.new_file if name == "file.arrow" else pyarrow.ipc.new_stream
        with pyarrow.OSFile(str(file), "wb") as sink, kind(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    found = list(parts(file, size))
    assert not any(part.read for part in found)
    again = pickle.loads(pickle.dumps(found))
    assert [row for part in again for row in part.rows()] == list(rows(file))
    assert len(list(rows(file))) == 5
    assert max(len(list(part.rows())) for part in again) <= size


def test_parts_of_a_file_that_is_cut_off_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(LINES)[:-9])
    with pytest.raises(ConfigError, match="cannot be read"):
        list(parts(file, 1))


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_of_any_width_are_the_decimals_that_were_meant(ending: str, dtype: str, tmp_path: Path) -> None:
    """A column of integers with an empty cell is a column of floats to pandas; .1 is .10000000149 in a narrow type."""
    values = [np.dtype(dtype).type(value) for value in (3.0, 0.1, 2.5)]
    table = pyarrow.table({"answer": pyarrow.array([*values, None], getattr(pyarrow, dtype)())})
    file = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(table, file)
    else:
        with pyarrow.ipc.new_file(file, table.schema) as sink:
            sink.write_table(table)
    found = [cell_text(row["answer"], "answer", place) for place, row in rows(file) if not isinstance(row, BadRow)]
    assert found == ["3", "0.1", "2.5", ""]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_row_that_repeats_the_head_is_no_example(ending: str, tmp_path: Path) -> None:
    """As in files that were written one after the other into one."""
    mark = "," if ending == "csv" else "\t"
    lines = ["question,answer", "a,3", "question,answer", "b,4"]
    (tmp_path / f"a.{ending}").write_text("\n".join(lines).replace(",", mark))
    (_, _), (place, wrong), _ = rows(tmp_path / f"a.{ending}")
    assert place == "line 3"
    assert isinstance(wrong, BadRow)
    assert str(wrong).endswith("line 3 repeats the head")


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("cell", ['"hello" she said', '"he said "hi" loudly"', '"never closed'])
def test_quotes_that_do_not_add_up_are_refused(cell: str, ending: str, tmp_path: Path) -> None:
    """The first would become `hello she said`: the text without its quotes."""
    mark, file = {"csv": ",", "tsv": "\t"}[ending], tmp_path / f"a.{ending}"
    file.write_text(f"question{mark}answer\na{mark}1\n{cell}{mark}2\nb{mark}3\n")
    with pytest.raises(ConfigError, match=r"line \d: a cell that begins with a quote must end with one, .* JSON lines"):
        list(rows(file))


def test_quotes_inside_of_a_bare_cell_and_doubled_ones_are_text(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('question,answer\n5" pipe,"say ""hi"",\nthen go"\n')
    assert [row for _, row in rows(file)] == [{"question": '5" pipe', "answer": 'say "hi",\nthen go'}]


@pytest.mark.parametrize("mark", [",", ";"])
def test_a_space_before_a_quoted_cell_is_refused(mark: str, tmp_path: Path) -> None:
    """The answer would be `"4"` with its quotes. A quoted cell may begin with a space and have quotes in it."""
    file = tmp_path / "a.csv"
    file.write_text(f'question{mark}answer\n"a\nb"{mark}1\n" ""hi"" he"{mark}2\n x{mark} 4\n')
    assert [row for _, row in rows(file)] == [
        {"question": "a\nb", "answer": "1"}, {"question": ' "hi" he', "answer": "2"}, {"question": " x", "answer": " 4"}
    ]  # fmt: skip
    file.write_text(file.read_text() + f'"c"{mark} "5"\n')
    with pytest.raises(ConfigError, match=r"line 6: a space is before the quote of a cell, .* take the spaces after"):
        list(rows(file))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_byte_order_mark_in_front_of_a_table_is_dropped(name: str, tmp_path: Path) -> None:
    plain = write(tmp_path / name)
    expected = LocalFile(path=str(plain), **COLUMNS).examples
    plain.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert LocalFile(path=str(plain), **COLUMNS).examples == expected


def test_a_byte_order_mark_in_front_of_a_text_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo")
    assert LocalFile(path=str(tmp_path / "a.txt")).examples == (Text("one"), Text("two"))
