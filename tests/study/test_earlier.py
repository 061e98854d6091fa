"""Results of an earlier call of compare.py that stand for runs."""

import json

import pytest

from skd.study.compare.design import Study
from skd.study.compare.earlier import check_none_lost, take_earlier
from skd.study.compare.results import mean_ap, table, write_study
from skd.study.compare.run import _waiting
from tests.study.test_study import SPEC, write_rows

TRAINED = {"t": {"config": "configs/shapes/teacher.yaml", "iterations": 9}}
TABLE = {"name": "x", "detector": "d", "methods": ["baseline", "A/B"]}


def study(work, flags=(), **changes):
    spec = {**SPEC, "teachers": TRAINED, "seeds": [1, 2], "compare": [TABLE], **changes}
    return Study(spec, str(work), list(flags))


@pytest.fixture
def earlier(tmp_path):
    """The results of a study whose folders are gone: seed 1 and the teacher are done."""
    made = study(tmp_path / "gone")
    for run in made.runs():
        if run.seed != 2:
            write_rows(run.folder, {"iteration": 8, "bbox/AP": 10.0 + len(run.method)})
    write_study(made, str(tmp_path / "results"), "compare.py")
    return str(tmp_path / "results" / "results.jsonl")


def test_what_is_done_elsewhere_is_not_run_again_but_a_teacher_that_is_needed(earlier, tmp_path):
    again = study(tmp_path / "here")
    assert take_earlier(again.runs(), [earlier], again.work) == 3
    waiting = [run.name for run in _waiting(again.runs())]
    assert waiting == ["teacher t", "d, baseline, 2", "d, A/B, 2"]
    assert [run.name for run in _waiting(again.runs((), [1]))] == []
    write_study(again, str(tmp_path / "out"), "compare.py")
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").open()]
    assert [line["status"] for line in lines] == ["done"] * 3 + ["not run"] * 2
    assert [line.get("taken_from") for line in lines] == [earlier] * 3 + [None] * 2
    assert (
        f"3 of them taken from `{earlier}` (commits: unknown)"
        in (tmp_path / "out" / "README.md").read_text()
    )
    assert table(again.comparisons[0])[1][-1] == "-5.0"  # 13 - 18: names of 3 and 8 letters
    teacher = again.teachers["t"]
    write_rows(teacher.folder, {"iteration": 8, "bbox/AP": 3.0})  # trained here: its own counts
    assert teacher.result()["ap"] == {"bbox/AP": 3.0}
    write_study(again, str(tmp_path / "out"), "compare.py")
    page = (tmp_path / "out" / "README.md").read_text()
    assert "trained again here and has 3.0 bbox/AP; the one of the runs that are taken had" in page


@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": 2},
        {"opts": ["SOLVER.BASE_LR", "9.0"]},
        {"teachers": {"t": {**TRAINED["t"], "iterations": 8}}},
    ],
)
def test_another_run_is_not_taken(changes, earlier, tmp_path):
    again = study(tmp_path / "here", **changes)
    take_earlier(again.runs(), [earlier], again.work)
    assert "d, A/B, 1" in [run.name for run in _waiting(again.runs())]


def test_a_method_of_another_name_is_another_run(earlier, tmp_path):
    again = study(tmp_path / "here", methods={"ours": {}}, compare=[{**TABLE, "methods": ["ours"]}])
    take_earlier(again.runs(), [earlier], again.work)
    run, _ = again.comparisons[0].runs
    assert run.earlier is None  # its folder has another name: the command is another
    assert again.teachers["t"].earlier["teacher"] == "t"


def results_of(made, folder):
    """All runs of a study done, or diverged where they have a method that "fails"."""
    for run in made.runs():
        if run.method == "fails":
            run.error = "FloatingPointError: Loss became infinite"
            run.note_failure()
        else:
            write_rows(run.folder, {"iteration": 8, "bbox/AP": 10.0})
    write_study(made, str(folder), "compare.py")
    return str(folder / "results.jsonl")


@pytest.mark.parametrize(
    "before,now", [("runs", "x/runs"), ("x/runs", "runs"), ("a/runs", "b/runs"), (".", "x")]
)
def test_work_folders_may_be_called_alike(before, now, tmp_path, monkeypatch):
    """And hold, or lie beside, the data."""
    monkeypatch.chdir(tmp_path)
    flags = ["--register-coco", "data", "a/data.json", "a/images"]
    path = results_of(study(before, flags), tmp_path / "results")
    again = study(now, flags)
    assert take_earlier(again.runs(), [path], now) == len(again.runs())
    other = study(now, [*flags[:2], "b/data.json", "b/images"])
    assert take_earlier(other.runs(), [path], now) == 0
    with pytest.raises(ValueError, match="finished runs that would be overwritten"):
        check_none_lost(study(now, flags).runs(), str(tmp_path / "results"), now)


def test_a_run_that_diverged_is_taken_and_kept(tmp_path):
    methods = {"A/B": {}, "fails": {}}
    changes = {"methods": methods, "compare": [{**TABLE, "methods": ["baseline", *methods]}]}
    path = results_of(study(tmp_path / "gone", **changes), tmp_path / "results")
    again = study(tmp_path / "here", **changes)
    assert take_earlier(again.runs(), [path], again.work) == len(again.runs())
    assert _waiting(again.runs()) == [] and mean_ap(again.runs(), "bbox/AP") == 10.0
    rows = {row[0]: row for row in table(again.comparisons[0])}
    assert rows["fails"][1] == "2, 2 diverged" and rows["fails"][-1] == "-10.0 ± 0.0"
    write_study(again, str(tmp_path / "out"), "compare.py")
    kept = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").open()]
    assert [row["status"] for row in kept].count("failed") == 2
    fewer = study(tmp_path / "here", **{**changes, "seeds": [1]})
    take_earlier(fewer.runs(), [path], fewer.work)
    with pytest.raises(ValueError, match="has 3 finished runs .* are not of this study"):
        check_none_lost(fewer.runs(), str(tmp_path / "out"), fewer.work)


def test_finished_results_are_not_written_over(earlier, tmp_path):
    again = study(tmp_path / "here")
    output = str(tmp_path / "results")
    with pytest.raises(
        ValueError, match="has 3 finished runs .*, as 'd, baseline, 1'.* --earlier .*results.jsonl"
    ):
        check_none_lost(again.runs(), output, again.work)
    check_none_lost(again.runs(), output, output)  # runs that were deleted beside it
    take_earlier(again.runs(), [earlier], again.work)
    check_none_lost(again.runs(), output, again.work)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match="--earlier nowhere: there is no such file"):
        take_earlier([], ["nowhere"], "work")
