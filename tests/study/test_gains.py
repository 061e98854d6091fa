"""The tables of what the flag gives, from results.jsonl."""

import json

import pytest

from skd.study.common.paired import ap_by_seed
from skd.study.common.statistics import verdict
from skd.study.gains import (
    draw_curves,
    draw_gains,
    gains_table,
    read_pairs,
    sizes_table,
    to_the_end_table,
)
from skd.study.results import results


def row(method, seed, box, mask, curve, detector="Mask R-CNN", status="done", teacher="t"):
    ap = {"bbox/AP": box, "bbox/APs": None, "bbox/APl": box + 1, "segm/AP": mask}
    out = {
        "detector": detector,
        "method": method,
        "seed": seed,
        "iterations": 300,
        "teacher": teacher,
    }
    out.update({"status": status, "curve": curve})
    return {**out, "ap": ap} if status == "done" else out


@pytest.fixture
def folder(tmp_path):
    study = tmp_path / "docs" / "results" / "real" / "carparts"
    study.mkdir(parents=True)
    curve = [[100, 20.0], [200, 39.5], [300, 40.0]]
    rows = [row("teacher", 0, 50.0, 45.0, [[0, 50.0]], detector="teacher")]
    for seed, (box, mask) in {1: (4.0, 1.0), 2: (5.0, -1.5), 3: (4.5, 0.5)}.items():
        rows.append(row("baseline", seed, 40.0 + seed, 36.0, curve))
        rows.append(row("SKD", seed, 40.0 + seed + box, 36.0 + mask, curve))
    rows.append(row("baseline", 4, 0, 0, [], status="not run"))  # without a pair
    rows.append(row("SKD", 4, 60.0, 60.0, curve))
    rows.append(row("SKD", 1, 0.0, 0.0, curve, teacher="another"))  # of another table
    (study / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path / "docs" / "results"


def test_two_runs_of_a_seed_are_not_mixed(folder):
    rows = [json.loads(line) for line in open(folder / "real" / "carparts" / "results.jsonl")]
    with pytest.raises(ValueError, match="two runs of SKD with seed 1"):
        ap_by_seed(rows, "SKD")
    rows[-1]["status"] = "not run"  # it takes nothing from the one that has
    assert ap_by_seed(rows, "SKD")[1]["bbox/AP"] == 45.0


def test_the_present_default_is_compared_with_the_first(folder):
    (folder / "first_default" / "carparts").mkdir(parents=True)
    rows = [row("SKD", seed, 44.0 + seed, 36.0, [], teacher="Lite2") for seed in (1, 2)]
    first = "".join(json.dumps(r) + "\n" for r in rows)
    (folder / "first_default" / "carparts" / "results.jsonl").write_text(first)
    for r in rows:
        r["ap"]["bbox/AP"] += 2.0
    rows += [row("SKD", 1, 0.0, 0.0, [], teacher="another", status="not run")]
    present = "".join(json.dumps(r) + "\n" for r in rows)
    (folder / "real" / "carparts" / "results.jsonl").write_text(present)
    (line,) = [x for x in to_the_end_table(str(folder)).split("\n") if "box AP" in x]
    assert [cell.strip() for cell in line.split("|")[2:6]] == [
        "2 of 2",
        "box AP",
        "45.5 ± 6.4",
        "47.5 ± 6.4",
    ]
    assert "**+2.0 ± 0.0**" in line


def verdict_of(pairs, key):
    return verdict(pairs.gains(key), pairs.planned)


def test_gains_are_paired_and_named(folder):
    (pairs,) = read_pairs(str(folder))
    assert pairs.seeds() == [1, 2, 3] and pairs.gains("bbox/AP") == [4.0, 5.0, 4.5]
    assert (
        verdict_of(pairs, "bbox/AP") == "win so far"
        and verdict_of(pairs, "segm/AP") == "tie so far"
    )
    assert pairs.last_third() == pytest.approx(0.5)
    pairs.distilled, pairs.baseline = pairs.baseline, pairs.distilled
    assert verdict_of(pairs, "bbox/AP") == "loss so far"
    pairs.planned = 3
    assert verdict_of(pairs, "bbox/AP") == "loss"
    del pairs.baseline[2], pairs.baseline[3]
    assert verdict_of(pairs, "bbox/AP") == "one seed"


def test_tables(folder):
    box, mask = gains_table(str(folder)).splitlines()[2:]
    # 4.5 ± t(2) 0.5 / sqrt(3), by hand
    assert (
        "| 3 of 4 " in box
        and "+4.5 ± 1.2" in box
        and "win" in box
        and "50.0" in box
        and "+0.5" in box
    )
    assert "tie" in mask and "+0.0 ± 3.3" in mask
    sizes = sizes_table(str(folder)).splitlines()[2:]
    assert [cell.strip() for cell in sizes[0].split("|")[3:9]] == [
        "+4.5 ± 1.2", "", "", "", "", "+4.5 ± 1.2",
    ]  # fmt: skip


def test_a_teacher_that_is_hardly_better_is_named(folder):
    path = folder / "real" / "carparts" / "results.jsonl"
    path.write_text(path.read_text().replace('"bbox/AP": 50.0', '"bbox/AP": 45.9'))
    box, mask = gains_table(str(folder)).splitlines()[2:]  # the baseline's are 42.0 and 36.0
    assert "45.9 (only +3.9)" in box and "only" not in mask


def test_nothing_run_yet(tmp_path):
    assert "Not run yet" in gains_table(str(tmp_path))
    assert not draw_gains(str(tmp_path), str(tmp_path / "x.png"))


def test_pictures_and_blocks_are_made_and_then_stay(folder):
    root = folder.parent.parent
    (root / "README.md").write_text("<!-- gains: made by make results -->\n<!-- end -->\n")
    changed = results(str(root))
    made = ["README.md", "curves.png", "gains.png", "methods.png", "pieces.png"]
    assert sorted(p.rsplit("/", 1)[1] for p in changed) == made
    assert "+4.5 ± 1.2" in (root / "README.md").read_text()
    assert results(str(root)) == []
    assert draw_curves(str(folder), str(root / "again.png"))


def test_a_run_that_diverged_counts_as_0_and_one_that_was_stopped_does_not(folder):
    path = folder / "real" / "carparts" / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [r for r in rows if (r["method"], r["seed"]) not in (("SKD", 2), ("baseline", 4))]
    failed = row("SKD", 2, 0, 0, [], status="failed")
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, {**failed, "error": "killed"}]))
    (pairs,) = read_pairs(str(folder))
    assert pairs.seeds() == [1, 3] and verdict_of(pairs, "bbox/AP") == "win so far"
    failed["error"] = "FloatingPointError: Loss is not finite at iteration 30"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, failed]))
    (pairs,) = read_pairs(str(folder))
    assert pairs.gains("bbox/AP") == [4.0, -42.0, 4.5]
    assert draw_curves(str(folder), str(folder / "x.png"))


@pytest.mark.parametrize("flat,cell", [(0.5, "+0.5, not flat"), (0.51, "+0.5")])
def test_a_baseline_that_still_rises_is_marked(folder, monkeypatch, flat, cell):
    monkeypatch.setattr("skd.study.gains.FLAT", flat)
    box = gains_table(str(folder)).splitlines()[2]
    assert box.split("|")[-2].strip() == cell
