"""The tables of unlabelled images and of heads, from results as their study files name them."""

import os

from skd.study.compare.design import Study, load_study
from skd.study.fewer_steps import every_table
from skd.study.more_to_learn import heads_table, unlabelled_table
from tests.helpers import ROOT
from tests.study.test_photographs import lines, write


def plant(folder, study, config, more):
    """30 + seed AP, and ``more`` of a run's detector, method and teacher; None: it has not run."""
    runs = Study(load_study(os.path.join(ROOT, "configs", config)), str(folder / "work")).runs()
    rows = [{**run.result(), "curve": []} for run in runs]
    for row in rows:
        gain = more(row["detector"], row["method"], row["teacher"])
        if gain is not None:
            row.update(status="done", ap={"bbox/AP": 30.0 + row["seed"] + gain})
    write(folder / study, rows)


def test_unlabelled_images_against_few_labels_and_all(tmp_path):
    def more(detector, method, teacher):
        if teacher == "a tenth" or detector == "teacher":
            return None
        return {"baseline": 0.0, "SKD": 2.0, "SKD, unlabelled": 6.0}[method] + 8.0 * (
            detector == "Mask R-CNN"
        )

    plant(tmp_path, "unlabelled/carparts", "real/unlabelled.yaml", more)
    table = unlabelled_table(str(tmp_path))
    found = {row[0]: row[1:] for row in lines(table) if len(row) > 1}
    assert {name: row[4] for name, row in found.items() if row[4]} == {
        "car parts: SKD, teacher Lite2": "**+2.0 ± 0.0**",
        "car parts: SKD, unlabelled, teacher Lite2": "**+6.0 ± 0.0**",
        "car parts: baseline, all labels": "**+8.0 ± 0.0**",
    }
    assert found["car parts: SKD, unlabelled, teacher a tenth"][:2] == ["0 of 3", "not run"]
    assert table.endswith("with the teacher of all labels: car parts, box AP 75%.")


def test_heads_against_the_features_alone(tmp_path):
    gain = {"baseline": 0.0, "SKD": 4.0, "SKD, heads": 5.0, "SKD, mask head": 3.5}
    gain.update({"SKD, CrossKD": 9.0, "teacher": 15.0})
    plant(tmp_path, "heads/carparts", "real/heads.yaml", lambda d, method, t: gain[method])
    plant(tmp_path, "heads/dense", "real/dense_heads.yaml", lambda d, method, t: gain[method])
    found = {row[0]: (row[1], row[5], row[6]) for row in lines(heads_table(str(tmp_path)))}
    assert found == {
        "car parts: SKD, heads": ("3 of 3", "**+1.0 ± 0.0**", "win"),
        "car parts: SKD, mask head": ("3 of 3", "**-0.5 ± 0.0**", "loss"),
        "car parts, RetinaNet: SKD, heads": ("3 of 3", "**+1.0 ± 0.0**", "win"),
        "car parts, RetinaNet: SKD, CrossKD": ("3 of 3", "**+5.0 ± 0.0**", "win"),
    }


def test_without_results_they_say_so(tmp_path):
    assert all("Not run yet" in table(str(tmp_path)) for table in (unlabelled_table, heads_table))


def test_what_is_left_of_the_gain_with_fewer_steps(tmp_path):
    gained = {"baseline": 0.0, "k = 1": 8.0, "k = 2": 6.0, "half size": -2.0}
    plant(tmp_path, "every", "every/shapes.yaml", lambda _, method, __: gained.get(method))
    table = every_table(str(tmp_path))
    found = {row[0]: row[5:] for row in lines(table) if len(row) > 1}
    assert found == {
        "k = 1": ["**+8.0 ± 0.0**", "win"],
        "k = 2": ["**+6.0 ± 0.0**", "win"],
        "half size": ["**-2.0 ± 0.0**", "loss"],
    }
    assert table.endswith("Part of the gain of k = 1 (box / mask): k = 2: 75%; half size: -25%.")
    assert every_table(str(tmp_path / "none")) == "**Not run yet.**"
