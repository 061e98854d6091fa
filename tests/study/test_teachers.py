"""The table of teachers of several strengths, and the pictures of logs."""

import json
import os
import shutil

from skd.study.log_pictures import SICK, draw_healthy, draw_sick
from skd.study.teachers import other_data_table, teachers_table
from tests.helpers import ROOT


def row(method, teacher, seed, ap, detector="A"):
    detector = "teacher" if method == "teacher" else detector
    known = {"detector": detector, "method": method, "teacher": teacher, "seed": seed}
    return {**known, "status": "done", "ap": {"bbox/AP": ap}}


def table(tmp_path, rows):
    folder = tmp_path / "study"
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in teachers_table(str(tmp_path)).splitlines()
    ]


def test_gains_are_paired_over_the_seeds_that_every_teacher_has(tmp_path):
    rows = [row("teacher", "weak", 0, 5.0), row("teacher", "strong", 0, 60.0)]
    rows += [row("baseline", "", seed, 10.0 + seed) for seed in (1, 2, 3)]
    rows += [row("SKD", "strong", seed, 20.0 + 2 * seed) for seed in (1, 2, 3)]
    rows += [row("SKD", "weak", seed, 9.0 + seed) for seed in (1, 2)]
    rows += [row("AT", "strong", 1, 90.0)]  # one teacher only: nothing to compare
    _, _, weak, strong = table(tmp_path, rows)
    assert weak == ["shapes, from scratch, A, SKD", "weak", "5.0", "-6.5", "2", "-1.0 ± 0.0"]
    assert strong[1:] == ["strong", "60.0", "+48.5", "2", "+11.5 ± 6.4"]  # t(1) 0.5, by hand


def test_without_results_it_says_so(tmp_path):
    assert teachers_table(str(tmp_path)) == "**Not run yet.**"


def test_a_teacher_of_other_data_beside_one_of_the_students(tmp_path):
    rows = [row("baseline", "", seed, 30.0) for seed in (1, 2)]
    for teacher, gain in (("own", 4.0), ("other", -1.0)):
        rows.append(row("teacher", teacher, 0, 50.0))
        rows += [row("SKD", teacher, seed, 30.0 + gain) for seed in (1, 2)]
    (tmp_path / "real" / "other_data").mkdir(parents=True)
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / "real" / "other_data" / "results.jsonl").write_text(text)
    _, _, own, other = other_data_table(str(tmp_path)).splitlines()
    assert "teacher own" in own and "**+4.0 ± 0.0** | win" in own
    assert "teacher other" in other and "**-1.0 ± 0.0** | loss" in other


def test_the_logs_are_drawn_where_they_are(tmp_path):
    names = ["healthy", "baseline", "short", *SICK]
    path = str(tmp_path / "picture.png")
    for draw in (draw_healthy, draw_sick):
        assert not draw(str(tmp_path), path) and not os.path.exists(path)
    kept = os.path.join(ROOT, "docs", "results", "log", "healthy")
    for name in names:
        shutil.copytree(kept, tmp_path / "log" / name)
    for draw in (draw_healthy, draw_sick):
        assert draw(str(tmp_path), path) and os.path.getsize(path) > 5000
        os.remove(path)
