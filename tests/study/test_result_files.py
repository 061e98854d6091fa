"""Files of results: a line cut off costs that line, a run cut off costs nothing."""

import json
import os

import pytest

from skd.study.common import result_files
from skd.study.common.result_files import add_line, finished, make_output, read_lines, write_lines
from skd.study.common.tables import NOT_RUN
from skd.study.doctor.table import _done
from skd.study.zoo import zoo_table

CUT = ['{"case": "b', '{"case": "b\n', "\0\0\n", "7\n", "\udcff\n"]
ROW = {"case": "a", "detector": "d", "seed": 0, "status": "done", "ap": {"bbox/AP": 1.0}}


@pytest.mark.parametrize("cut", CUT)
def test_a_line_cut_off_costs_that_line(tmp_path, cut):
    path = tmp_path / "results.jsonl"
    path.write_bytes((json.dumps(ROW) + "\n" + cut).encode(errors="surrogateescape"))
    assert read_lines(str(path)) == finished(str(path)) == [ROW]
    assert list(_done(str(tmp_path))) == [("a", "d", 0)]
    add_line(str(path), {"case": "c"})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [ROW, {"case": "c"}]


def test_the_model_zoo_is_made_around_a_line_cut_off(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.jsonl").write_text(CUT[0])
    assert zoo_table(str(tmp_path)) == NOT_RUN


def test_no_file_is_no_row(tmp_path):
    assert read_lines(str(tmp_path / "results.jsonl")) == []


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path):
    make_output(str(tmp_path / "a" / "b"))
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="--output is '.*file.*'; it must be a folder to write"):
            make_output(str(path))


def test_a_write_that_is_cut_off_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = str(tmp_path / "results.jsonl")
    add_line(path, ROW)
    monkeypatch.setattr(os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result_files.write_text(path, "half")
    assert read_lines(path) == [ROW] and os.listdir(tmp_path) == ["results.jsonl"]
    monkeypatch.undo()
    write_lines(path, [])
    assert read_lines(path) == []
