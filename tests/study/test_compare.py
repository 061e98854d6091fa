"""tools/compare.py: real runs of a few iterations, its statistics, and its report in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from tests.helpers import ROOT
from tests.processes import environment, run_script

pytestmark = pytest.mark.slow

TEACHER = {"config": "configs/shapes/teacher.yaml", "weights": "configs/shapes/teacher.pth"}
STUDY = {
    "iterations": 2,
    "seeds": [1, 2],
    "opts": ["SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0],
    "teachers": {"good": TEACHER, "poor": {"config": TEACHER["config"], "iterations": 1}},
    "detectors": {
        "Mask R-CNN": {"config": "configs/shapes/student.yaml"},
        "RetinaNet": {"config": "configs/shapes/retinanet_student.yaml", "iterations": 1},
    },
    "methods": {
        "PKD": {"MODEL.DISTILLER.NAME": "PKD"},
        "broken": {"MODEL.DISTILLER.NAME": "FGD", "SOLVER.REFERENCE_WORLD_SIZE": 7},
    },
    "compare": [
        {"name": "Masks", "detector": "Mask R-CNN", "methods": ["baseline", "PKD", "broken"]},
        {
            "name": "One stage", "detector": "RetinaNet", "methods": ["baseline", "PKD"],
            "seeds": [1],
        },
        {
            "name": "Teachers", "detector": "Mask R-CNN", "methods": ["PKD"], "seeds": [1],
            "teachers": ["good", "poor"],
        },
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory, shapes):
    """A study of which one method fails: (its folder, what it printed)."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    printed = compare(folder, shapes, ok=False)
    return folder, printed


def compare(folder, shapes, *args, **kwargs):
    return run_script(
        "tools/compare.py", folder / "study.yaml", "--work", folder / "work",
        "--output", folder / "out", "--images", 2, *args, datasets=shapes, **kwargs,
    )  # fmt: skip


def squeezed(text):
    """The text without the spaces that make columns equally wide."""
    return re.sub(" +", " ", text)


def results(folder):
    with open(folder / "out" / "results.jsonl") as f:
        return [json.loads(line) for line in f]


def test_a_failed_run_does_not_sink_the_rest(study):
    folder, printed = study
    rows = results(folder)
    state = {(r["detector"], r["method"], r["teacher"], r["seed"]): r["status"] for r in rows}
    assert state == {
        ("teacher", "teacher", "good", 0): "done",
        ("teacher", "teacher", "poor", 0): "done",
        **{("Mask R-CNN", "baseline", "", seed): "done" for seed in (1, 2)},
        **{("Mask R-CNN", "PKD", "good", seed): "done" for seed in (1, 2)},
        **{("Mask R-CNN", "broken", "good", seed): "failed" for seed in (1, 2)},
        ("Mask R-CNN", "PKD", "poor", 1): "done",
        ("RetinaNet", "baseline", "", 1): "done",
        ("RetinaNet", "PKD", "good", 1): "done",
    }
    assert "minutes left" in printed and "'Mask R-CNN, broken, 1' ended with 2" in printed
    done = [r for r in rows if r["status"] == "done"]
    for row in done:
        assert row["command"].startswith("python -m skd.train_net --config-file configs/shapes/")
        assert {"bbox/AP", "bbox/AP50", "bbox/APs", "bbox/APl"} <= set(row["ap"])
        assert ("segm/AP" in row["ap"]) == (row["detector"] != "RetinaNet")
    readme = squeezed((folder / "out" / "README.md").read_text())
    assert "9 of 11 runs are done" in readme and "## Failed" in readme
    assert re.search(r"\| PKD \| 2 \| .* ± .* \|", readme) and "PKD, teacher poor" in readme


def test_finished_runs_are_kept_and_failed_ones_tried_again(study, shapes):
    folder, _ = study
    final = folder / "work" / "Mask_R-CNN" / "PKD" / "seed1" / "model_final.pth"
    before = os.path.getmtime(final)
    printed = compare(folder, shapes, ok=False)
    assert "9 of 11 runs are done already" in printed and os.path.getmtime(final) == before


def test_an_interrupted_study_stops_its_runs_and_goes_on(shapes, tmp_path):
    spec = {
        **STUDY,
        "iterations": 60,
        "seeds": [1],
        "compare": [{"name": "x", "detector": "Mask R-CNN", "methods": ["baseline", "PKD"]}],
        "teachers": {"good": TEACHER},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    command = ["tools/compare.py", tmp_path / "study.yaml", "--work", tmp_path / "work"]
    with open(tmp_path / "stdout.txt", "w") as out:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment(shapes),
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    folder = tmp_path / "work" / "Mask_R-CNN" / "baseline" / "seed1"
    deadline = time.monotonic() + 200
    metrics = folder / "metrics.json"  # made empty, before signals are taken
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=120) != 0
    state = (folder / "last_checkpoint").read_text()  # the run was told, and has ended
    assert "Stopped after iteration" in (folder / "stdout.txt").read_text()
    run_script(*command, "--images", 1, datasets=shapes)
    printed = (folder / "stdout.txt").read_text()
    assert f"Starting training from iteration {int(state[6:13]) + 1}" in printed
    assert (folder / "model_final.pth").exists()


def test_another_study_does_not_mix_with_the_runs_of_the_first(study, shapes, tmp_path):
    folder, _ = study
    spec = {**STUDY, "iterations": 3}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    printed = run_script(
        "tools/compare.py", tmp_path / "study.yaml", "--work", folder / "work",
        datasets=shapes, ok=False,
    )  # fmt: skip
    assert "holds another run" in printed and "Delete the folder, or choose another" in printed


def test_one_seed_has_one_order_of_images(study):
    """The first losses of baseline and distilled agree at a learning rate near 0."""
    folder, _ = study
    first = []
    for method in ("baseline", "PKD"):
        path = folder / "work" / "Mask_R-CNN" / method / "seed1" / "metrics.json"
        first.append(json.loads(path.read_text().splitlines()[0]))
    assert first[0]["loss_rpn_cls"] == pytest.approx(first[1]["loss_rpn_cls"], rel=1e-3)


def test_flags_instead_of_a_study_file(shapes, tmp_path):
    printed = run_script(
        "tools/compare.py", "--config-file", "configs/shapes/student.yaml",
        "--teacher", TEACHER["config"], "--teacher-weights", TEACHER["weights"],
        "--methods", "AT", "--seeds", 1, "--jobs", 1, "--work", tmp_path,
        "--iterations", 1, "--opts", "SOLVER.IMS_PER_BATCH", 2, datasets=shapes,
    )  # fmt: skip
    assert "report.html" in printed
    with open(tmp_path / "results.jsonl") as f:
        rows = [json.loads(line) for line in f]
    assert [r["method"] for r in rows] == ["teacher", "baseline", "AT"]
    assert rows[0]["ap"]["bbox/AP"] > 30


@pytest.mark.parametrize(
    "change,words",
    [
        ({"method": {}}, "unknown: ['method']"),
        ({"seeds": None}, "missing: ['seeds']"),
        ({"teachers": {"t": {"config": "x.yaml"}}}, "must have 'config' and either 'weights'"),
        ({"methods": {}}, "'PKD' is none of the study's methods: baseline"),
        ({"methods": {"PKD": {"MODEL.DISTILLER.NAME": "PDK"}, "broken": {}}}, "Unknown method"),
        ({"methods": {"PKD": {"MODEL.DISTILER": "x"}, "broken": {}}}, "MODEL.DISTILER"),
        ({"opts": ["SOLVER.BASE_LR"]}, "list of KEY, VALUE"),
        (
            {"opts": ["MODEL.DISTILLER.COMBINE", "[['AT', 1]]"]},
            "COMBINE is set; leave it out: the method 'PKD' says what runs",
        ),
    ],
)
def test_a_bad_study_is_an_error_before_anything_runs(change, words, tmp_path):
    from skd.study.compare.design import Study

    spec = {k: v for k, v in {**STUDY, **change}.items() if v is not None}
    with pytest.raises((ValueError, KeyError, AssertionError)) as error:
        Study(spec, str(tmp_path)).check()
    assert words in str(error.value)
    assert not os.listdir(tmp_path)


def test_images_without_labels_are_for_the_runs_that_distil(tmp_path):
    """Without a teacher they end a run with an error."""
    from skd.study.compare.design import Study, options_of_part

    opts = ["DATASETS.UNLABELLED", "('tiny_val',)", "DATASETS.UNLABELLED_PER_BATCH", 2]
    study = Study({**STUDY, "opts": [*STUDY["opts"], *opts]}, str(tmp_path))
    for run in study.runs():
        assert ("DATASETS.UNLABELLED" in run.opts) == (run.method in ("PKD", "broken"))
        assert ("DATASETS.UNLABELLED_PER_BATCH" in run.opts) == ("DATASETS.UNLABELLED" in run.opts)
    options = ["+dataloader.unlabelled", "[tiny_val]", "train.seed", "1"]
    assert options_of_part("student", options, ()) == ["train.seed", "1"]


def test_names_of_a_study_stay_below_its_folder(tmp_path):
    from skd.study.compare.design import Study

    spec = {
        **STUDY,
        "detectors": {"../../x": {"config": "configs/shapes/student.yaml"}},
        "compare": [{"name": "x", "detector": "../../x", "methods": ["baseline"]}],
    }
    for run in Study(spec, str(tmp_path)).by_folder.values():
        assert os.path.realpath(run.folder).startswith(os.path.realpath(tmp_path) + os.sep)


def test_intervals_by_hand():
    from skd.study.common.statistics import half_width, interval

    # 12 values: 2.201 for 11 degrees of freedom, where a normal distribution has 1.96
    twelve = [float(i % 2) for i in range(12)]
    assert half_width(twelve) == pytest.approx(2.201 * (3 / 11) ** 0.5 / 12**0.5, rel=1e-4)
    # mean 2, standard deviation 1, 3 values: 4.303 / sqrt(3) = 2.484
    assert interval([1.0, 2.0, 3.0]) == "2.0 ± 2.5"
    assert interval([3.0], "+") == "+3.0" and interval([]) == "-"


def test_the_difference_is_paired_by_seed():
    from skd.study.compare.design import Comparison
    from skd.study.compare.results import table

    class Done:
        def __init__(self, method, seed, box, mask):
            self.method, self.seed, self.teacher = method, seed, "t" if method == "A" else ""
            self.ap = {"bbox/AP": box, "segm/AP": mask}

        def result(self):
            return {"status": "done", "ap": self.ap}

    runs = [
        Done("baseline", 1, 10.0, 10.0), Done("baseline", 2, 20.0, 20.0),
        Done("A", 1, 12.0, 11.0), Done("A", 2, 22.0, 21.0), Done("A", 3, 99.0, 99.0),
    ]  # fmt: skip
    rows = table(Comparison("x", runs))
    assert rows[1][-2:] == ["+2.0 ± 0.0", "+1.0 ± 0.0"] and rows[1][1] == "3"


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip("no Chromium; on Debian: apt-get install chromium")
    return found


def open_page(browser, page, tmp_path, *flags):
    """The page's document after its scripts ran, and what the browser logged."""
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--no-first-run",
            f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr",
            "--virtual-time-budget=5000", *flags, "--dump-dom", page,
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    return done.stdout


def test_the_report_in_a_browser(study, browser, tmp_path):
    page = f"file://{study[0]}/out/report.html"
    source = (study[0] / "out" / "report.html").read_text()
    assert not re.search(r'(src|href)="?http', source) and len(source) < 3e6
    first = open_page(browser, page, tmp_path)
    second = open_page(browser, page + "#image=1&show=1", tmp_path)
    assert "1 of 2</output>" in first and "2 of 2</output>" in second
    pictures = [re.findall(r'src="(data:image/webp[^"]+)"', dom) for dom in (first, second)]
    # ground truth, two teachers, and every method that finished
    assert len(pictures[0]) == len(pictures[1]) == 8
    assert all(a != b for a, b in zip(*pictures))
    for words in ("Masks", "One stage", "RetinaNet, PKD, 1", "teacher poor", "<svg"):
        assert words in first
    shot = tmp_path / "shot.png"
    open_page(browser, page, tmp_path, f"--screenshot={shot}", "--window-size=1200,3000")
