"""docs/model_zoo.md: a row for each detector, method and teacher of each study."""

import json

from skd.study.common.tables import NOT_RUN
from skd.study.zoo import zoo_table


def run(method, seed, box, status="done", **ap):
    row = {
        "detector": "RetinaNet",
        "method": method,
        "teacher": "" if method == "baseline" else "T",
    }
    row["command"] = "python -m skd.train_net --config-file configs/shapes/student.yaml SEED 1"
    row["seconds_per_iteration"] = 0.1 * seed
    row["peak_memory_mb"] = 900 + seed if method == "SKD" else None
    return {**row, "seed": seed, "iterations": 400, "status": status, "ap": {"bbox/AP": box, **ap}}


def test_rows_are_means_over_the_seeds_of_what_is_done(tmp_path):
    assert zoo_table(str(tmp_path)) == NOT_RUN
    runs = [
        run("baseline", 1, 10.0), run("baseline", 2, 12.0), run("SKD", 1, 20.0),
        run("SKD", 2, 90.0, "failed"), run("FGD", 1, 30.0, **{"segm/AP": 25.0}),
    ]  # fmt: skip
    (tmp_path / "a" / "b").mkdir(parents=True)
    lines = "".join(json.dumps(r) + "\n" for r in runs)
    (tmp_path / "a" / "b" / "results.jsonl").write_text(lines)
    (tmp_path / "search").mkdir()  # left out
    (tmp_path / "search" / "results.jsonl").write_text(lines)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.jsonl").write_text('{"case": "of the doctor"}\n')
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in zoo_table(str(tmp_path)).splitlines()[2:]
    ]
    link = "[a/b](results/a/b/README.md)"
    config = "[student.yaml](../configs/shapes/student.yaml)"
    assert rows == [
        [link, "RetinaNet", "baseline", "", "400", "2", "11.0 ± 12.7", "-", "0.15", "-", config],
        [link, "RetinaNet", "SKD", "T", "400", "1", "20.0", "-", "0.10", "901", config],
        [link, "RetinaNet", "FGD", "T", "400", "1", "30.0", "25.0", "0.10", "-", config],
    ]


def test_runs_of_an_earlier_call_are_the_studys_own(tmp_path):
    """And those that another study had first are not."""
    folder = tmp_path / "docs" / "results"
    rows = [run("baseline", seed, ap) for seed, ap in ((1, 1.0), (2, 2.0), (3, 6.0))]
    rows[0]["taken_from"] = "docs/results/own/results.jsonl"
    rows[2]["taken_from"] = "docs/results/other/results.jsonl"
    (folder / "own").mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "own" / "results.jsonl").write_text(text)
    (line,) = zoo_table(str(folder)).splitlines()[2:]
    assert [cell.strip() for cell in line.split("|")[6:8]] == ["2", "1.5 ± 6.4"]
