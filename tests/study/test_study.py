"""What the commands stand on, without a training."""

import itertools
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from skd import train_net
from skd.modeling import build_detector
from skd.modeling.teacher import teacher_source
from skd.study.common import runs
from skd.study.common.command import RunError, command_parser, run_command
from skd.study.common.devices import default_threads, same_threads, visible_gpus
from skd.study.common.metrics import (
    commits,
    distillation,
    main_metrics,
    read_metrics,
    scores,
    title_of,
)
from skd.study.common.runs import ChildRun, least_used, option_pairs
from skd.study.common.tables import markdown_table, print_table
from skd.study.compare import report
from skd.study.compare.design import Study, StudyRun, load_study
from skd.study.compare.results import alike_table, header, table, terms_table, write_study
from skd.study.compare.run import _short_names
from skd.study.robustness import _same
from tests.helpers import LAZY, ROOT, tiny_config


def write_rows(folder, *lines):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "metrics.json"), "w") as f:
        f.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    open(os.path.join(folder, "model_final.pth"), "w").close()


def test_what_is_no_number_among_metrics_is_left_out_with_a_warning(tmp_path, caplog):
    row = {"iteration": 39, "bbox/AP": "a lot", "bbox/AP50": 3.0, "segm/AP": None, "x": [1]}
    write_rows(tmp_path, row, {"iteration": "one", "bbox/AP": 1.0})
    assert (
        read_metrics(str(tmp_path))
        == read_metrics(str(tmp_path))
        == [{"iteration": 39, "bbox/AP50": 3.0}]
    )
    assert caplog.text.count("something else than a number as 'bbox/AP'") == 1


def test_time_and_memory_of_a_run_are_kept(tmp_path):
    steps = [{"iteration": i, "time": t} for i, t in ((19, 4.0), (39, 1.0), (59, 1.0))]
    end = {"iteration": 59, "bbox/AP": 3.0, "peak_memory_mb": 812.4}
    write_rows(tmp_path, {"iteration": 19, "peak_memory_mb": 500.0}, *steps, end)
    kept = StudyRun("x", "c.yaml", str(tmp_path), 60).measured()
    assert (kept["seconds_per_iteration"], kept["peak_memory_mb"]) == (2.0, 812)
    write_rows(tmp_path, {"iteration": 59, "bbox/AP": 3.0})  # of an earlier version
    assert StudyRun("x", "c.yaml", str(tmp_path), 60).measured()["peak_memory_mb"] is None


@pytest.mark.parametrize("ap", [None, 5, "x", {"bbox": "x"}])
def test_kept_results_that_are_none_are_evaluated_again(ap):
    key = {"model": "a", "seed": 1}
    assert _same({"seed": 1, "ap": {"bbox": 1.0}}, key) and not _same({"seed": 1, "ap": ap}, key)


@pytest.mark.parametrize("half", ['{"iteration": 19, "total_lo\n', "\0\0\n", "7\n"])
def test_half_a_line_hides_nothing_else(tmp_path, half):
    write_rows(tmp_path, half, {"iteration": 39, "bbox/AP": 3.0})
    assert read_metrics(str(tmp_path)) == [{"iteration": 39, "bbox/AP": 3.0}]
    assert ChildRun("x", "c", str(tmp_path), 40).finished()


@pytest.mark.parametrize(
    "key", ["bbox/AP", "keypoints/AP", "sem_seg/mIoU", "panoptic_seg/PQ", "my_val/segm/AP"]
)
def test_students_of_every_task_finish(tmp_path, key):
    write_rows(tmp_path, {"iteration": 0, "total_loss": 1.0})
    run = StudyRun("x", "c.yaml", str(tmp_path), 1)
    assert not run.finished()
    write_rows(tmp_path, {"iteration": 0, key: 5.0})
    assert run.finished()


def test_metrics_of_other_tasks_are_in_the_tables(tmp_path):
    (tmp_path / "c.yaml").write_text("VERSION: 2\n")
    done = []
    for method, value in (("baseline", 40.0), ("AT", 42.5)):
        write_rows(tmp_path / method, {"iteration": 0, "sem_seg/mIoU": value, "sem_seg/fwIoU": 1})
        done.append(
            StudyRun(method, str(tmp_path / "c.yaml"), str(tmp_path / method), 1, method=method)
        )
    comparison = SimpleNamespace(runs=done, name="x")
    assert header(comparison) == ["method", "seeds", "mIoU", "mIoU - baseline's"]
    assert table(comparison) == [["baseline", "1", "40.0", ""], ["AT", "1", "42.5", "+2.5"]]


def test_scores_by_hand():
    row = {"bbox/AP": float("nan"), "bbox/APs": float("nan"), "iteration": 3}
    assert scores(row) == {"bbox/AP": 0.0, "bbox/APs": 0.0}
    nothing = {"bbox/AP": float("nan"), "bbox/AP50": float("nan"), "bbox/AP-a": float("nan")}
    assert all(np.isnan(value) for value in scores(nothing).values())  # there is nothing to find
    row = {"segm/AP": 12.34567, "segm/APl": float("nan"), "bbox/AP-circle": 3.0}
    assert scores(row) == {"segm/AP": 12.346, "segm/APl": None}
    assert main_metrics({"segm/AP": 1, "bbox/AP": 1, "bbox/AP50": 1}) == ["bbox/AP", "segm/AP"]
    assert title_of("val/bbox/AP") == "box AP, val" and title_of("bbox/AP50") == ""


@pytest.mark.parametrize("name", ["AT [/bold]", "AT [bold]", "$x", "_AT", "a|b", "x\ny", "a--b"])
def test_markup_in_names_is_harmless(name, capsys, tmp_path):
    print_table("t", ["method"], [[name]])
    assert name.replace("\n", " ") in capsys.readouterr().out
    assert len(markdown_table(["method"], [[name]]).splitlines()) == 3
    (tmp_path / "c.yaml").write_text("VERSION: 2\n")
    write_rows(tmp_path, {"iteration": 0, "bbox/AP": 1.0})
    run = StudyRun(name, str(tmp_path / "c.yaml"), str(tmp_path), 1, method=name)
    svg = report._curves(SimpleNamespace(runs=[run]))
    assert svg.startswith("<svg") and svg.count("<!--") == svg.count("-->")
    with runs.Display([run]) as display:
        display.update(run, True)


def test_the_time_left_is_of_what_was_made_since(tmp_path, capsys):
    """Of an evaluation nothing follows for trainings, and what was resumed took no time."""
    (tmp_path / "c.yaml").write_text("VERSION: 2\n")
    made = {"teacher": 0, "resumed": 1000, "waiting": 1000}
    shown = [
        StudyRun(name, str(tmp_path / "c.yaml"), str(tmp_path / name), n, method="SKD")
        for name, n in made.items()
    ]
    teacher, resumed, _ = shown
    write_rows(tmp_path / "resumed", {"iteration": 499, "total_loss": 1.0})
    with runs.Display(shown) as display:
        display.update(teacher, True)
        display.update(resumed, False)
        display.begin -= 600
        display.update(resumed, True)
    first, last = [line for line in capsys.readouterr().out.splitlines() if " of all" in line]
    assert first.endswith("teacher: done; 0% of all")
    assert last.endswith("resumed: done; 50% of all, 20 minutes left")


def test_a_later_report_knows_what_failed(tmp_path):
    """--report-only is another process, which has run nothing."""
    (tmp_path / "c.yaml").write_text("VERSION: 2\n")
    folder = str(tmp_path / "run")

    def run():
        return StudyRun("r", str(tmp_path / "c.yaml"), folder, 3, method="AT", seed=7)

    failed, later = run(), run()
    failed.error = "ended with 1:\nout of paper"
    failed.note_failure()
    study = SimpleNamespace(comparisons=[], teachers={}, runs=lambda: [later])
    write_study(study, str(tmp_path), "compare.py")
    row = json.loads((tmp_path / "results.jsonl").read_text())
    assert row["status"] == "failed" and row["error"] == failed.error
    assert "## Failed" in (tmp_path / "README.md").read_text()
    write_rows(folder, {"iteration": 2, "bbox/AP": 1.0})  # tried again, and done
    assert run().result()["status"] == "done"


def test_reports_show_what_the_terms_did(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("VERSION: 2\n")
    terms = {"distill/weight_at": 0.5, "distill/norm_at": 3.0, "distill/cosine_at": -0.02}
    own = {"detector_loss": 1.5, "distill/norm_detector": 2.0}
    alike = ({"distill/cka_p2": 0.1, "distill/cka_p3": 0.2}, {"distill/cka_p2": 0.9})
    write_rows(
        tmp_path,
        {"iteration": 0, "distill/share_at": 1.0, **terms, **own, **alike[0]},
        {"iteration": 1, "distill/share_at": 0.25, **terms, **own, **alike[1]},
        {"iteration": 2, "bbox/AP": 1.0},
    )
    (tmp_path / "model_final.pth").touch()
    write_rows(
        tmp_path / "b", {"iteration": 0, "distill/share_at": 2.0}, {"iteration": 2, "bbox/AP": 1.0}
    )
    config = str(tmp_path / "c.yaml")
    run, other = (
        StudyRun("r", config, str(tmp_path / name), 3, method="AT", seed=i)
        for i, name in enumerate(["", "b"])
    )
    assert terms_table(SimpleNamespace(name="x", runs=[run, other])) == [
        ["AT", "1.5", "2", "at", "131.2%", "112.5%", "0.5", "3", "-0.02"]
    ]
    assert alike_table(SimpleNamespace(name="x", runs=[run, other])) == (
        ["method", "p2", "p3"], [["AT", "0.10 to 0.90", "0.20 to 0.20"]]
    )  # fmt: skip
    comparison = SimpleNamespace(name="x", runs=[run])
    study = SimpleNamespace(comparisons=[comparison], teachers={}, runs=lambda: [run])
    write_study(study, str(tmp_path), "compare.py")
    readme = (tmp_path / "README.md").read_text()
    assert " 62.5% |" in readme and "| 0.10 to 0.90 |" in readme
    none = {"models": [], "maps": [], "images": []}
    monkeypatch.setattr(report, "_pictures", lambda study, images: none)
    report.write_report(study, str(tmp_path), "compare.py", 0)
    page = (tmp_path / "report.html").read_text()
    assert "<td>62.5%</td>" in page and "<td>0.10 to 0.90</td>" in page


@pytest.mark.parametrize(
    "error,seeds,gain",
    [
        ("ended with 1:\nFloatingPointError: Loss is not finite", "2, 1 diverged", "-19.5 ± 273.2"),
        ("ended with -9:\n", "1", "+2.0"),  # of the machine: to be run again
    ],
)
def test_a_run_that_diverged_counts_as_0(tmp_path, error, seeds, gain):
    (tmp_path / "c.yaml").write_text("VERSION: 2\n")
    runs = [
        StudyRun("r", str(tmp_path / "c.yaml"), str(tmp_path / f"{method}{seed}"), 3,
                 method=method, seed=seed)
        for method in ("baseline", "AT") for seed in (1, 2)
    ]  # fmt: skip
    for run, value in zip(runs, (40.0, 41.0, 42.0)):
        write_rows(run.folder, {"iteration": 2, "bbox/AP": value})
    runs[3].error = error
    _, row = table(SimpleNamespace(runs=runs, name="x"))
    assert [row[1], row[3]] == [seeds, gain]


def test_one_seed_of_one_table_can_be_run_again(tmp_path):
    study = Study(load_study(os.path.join(ROOT, "configs", "real", "carparts.yaml")), str(tmp_path))
    names = [run.name for run in study.runs(["Mask R-CNN"], [2])]
    assert names == ["teacher Lite2", "Mask R-CNN, baseline, 2", "Mask R-CNN, SKD, 2"]
    assert {run.seed for run in study.runs((), [4, 5])} == {0, 4, 5}
    with pytest.raises(ValueError, match="--seeds has 4; it must be of 1, 2, 3"):
        study.runs(["A larger student"], [1, 4])


def test_results_say_of_which_commit_they_are(tmp_path):
    states = [{"commit": "a" * 40, "changed": False}, {"commit": "b" * 40, "changed": True}, {}]
    lines = [json.dumps({"git": git}) for git in (*states, states[0])]
    (tmp_path / "runs.jsonl").write_text("\n".join(lines))
    assert commits(str(tmp_path)) == ["a" * 12, "b" * 12 + "+"]
    assert commits(str(tmp_path / "none")) == []


def test_runs_whose_terms_are_not_balanced_have_none(tmp_path):
    row = {"iteration": 0, "distill/pkd_p2": 1.0}
    assert distillation([row]) == {}
    levels = {"p2": {"first": 0.5, "last": 0.5}}
    assert distillation([{**row, "distill/cka_p2": 0.5}]) == {"terms": {}, "levels": levels}


ATTACK = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize("name", [ATTACK, "{{ 7 * 7 }}", "</script>" + ATTACK, "@PICTURES@"])
def test_the_report_shows_names_as_text(name, tmp_path, monkeypatch):
    maps = ["image", "P3", name]
    shown = {"models": ["ground truth", ATTACK, name], "maps": maps, "images": [[["a", "b"]] * 3]}
    monkeypatch.setattr(report, "_pictures", lambda study, images: shown)
    (tmp_path / "c.yaml").write_text("VERSION: 2\n")
    write_rows(tmp_path, {"iteration": 0, "bbox/AP": 1.0})
    run = StudyRun(name, str(tmp_path / "c.yaml"), str(tmp_path), 1, method=name)
    study = SimpleNamespace(comparisons=[SimpleNamespace(name=name, runs=[run])])
    report.write_report(study, str(tmp_path), f"compare.py {name}", 1)
    page = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in page and "49" not in page.split("<svg")[0].split("</style>")[1]
    assert page.count("</script>") == 1


SPEC = {
    "iterations": 1,
    "seeds": [1],
    "teachers": {"t": {"config": "configs/shapes/teacher.yaml", "weights": "x.pth"}},
    "detectors": {"d": {"config": "configs/shapes/student.yaml"}},
    "methods": {"A/B": {}, "A:B": {}, "a b": {}, "..": {}},
}


@pytest.mark.parametrize("names", [("A/B", "A:B"), ("A:B", "a b"), ("..", "A/B")])
def test_two_names_cannot_share_a_folder(names, tmp_path):
    spec = {**SPEC, "compare": [{"name": "x", "detector": "d", "methods": list(names)}]}
    with pytest.raises(ValueError, match="would share the folder"):
        Study(spec, str(tmp_path))
    one = {**SPEC, "compare": [{"name": "x", "detector": "d", "methods": ["A/B"]}]}
    assert len(Study(one, str(tmp_path)).runs()) == 2


def test_some_tables_of_a_study_and_their_teachers(tmp_path):
    teachers = {**SPEC["teachers"], "other": {**SPEC["teachers"]["t"], "iterations": 1}}
    del teachers["other"]["weights"]
    tables = [
        {"name": "one", "detector": "d", "methods": ["baseline", "A/B"]},
        {"name": "two", "detector": "d", "methods": ["a b"], "teachers": ["other"]},
    ]
    study = Study({**SPEC, "teachers": teachers, "compare": tables}, str(tmp_path))
    assert len(study.runs()) == 5
    assert {run.method for run in study.runs(["one"])} == {"teacher", "baseline", "A/B"}
    assert [run.teacher for run in study.runs(["two"])] == ["other", "other"]
    with pytest.raises(ValueError, match="'three' is none of the study's tables: one, two"):
        study.runs(["one", "three"])


def test_options_of_a_lazy_config_reach_each_run_where_its_keys_lie(tmp_path):
    """Written for the runs that distil: the baseline has the student's part, the teacher none."""
    for name in ("s.py", "t.py"):
        (tmp_path / name).write_text("")
    shared = [
        "model.features=neck",
        "+model.every=2",
        "model.student.width",
        "4",
        "train.seed",
        "a=b",
        "SEED",
        "3",
    ]
    spec = {
        "iterations": 1, "seeds": [1], "opts": option_pairs(shared),
        "teachers": {"t": {"config": str(tmp_path / "t.py"), "iterations": 1}},
        "detectors": {"d": {"config": str(tmp_path / "s.py")}},
        "methods": {"baseline": {"model.depth": 2}, "A": {}},
        "compare": [{"name": "x", "detector": "d", "methods": ["baseline", "A"]}],
    }  # fmt: skip
    study = Study(spec, str(tmp_path), trusted=True)
    of = {run.method: run.command()[3:] for run in study.by_folder.values()}
    models = {m: [part for part in of[m] if "model." in part] for m in of}
    assert models["teacher"] == []
    assert models["baseline"] == ["model.width=4", "model.depth=2"]
    assert models["A"] == ["model.features=neck", "+model.every=2", "model.student.width=4"]
    assert all({"train.seed=a=b", "train.seed=3"} <= set(parts) for parts in of.values())


@pytest.mark.parametrize("student,teacher", [("s.py", "t.yaml"), ("s.yaml", "t.py")])
def test_a_teacher_of_the_other_form_gets_what_it_knows(student, teacher, tmp_path):
    own = {
        "s.py": ["dataloader.test.dataset.names=x", "optimizer.weight_decay=0.1"],
        "s.yaml": ["DATASETS.TEST", "x", "SOLVER.WEIGHT_DECAY", "0.1"],
        "t.py": ["dataloader.test.dataset.names=x"],
        "t.yaml": ["DATASETS.TEST", "x"],
    }
    for name in (student, teacher):
        (tmp_path / name).write_text("")
    spec = {
        "iterations": 1, "seeds": [1], "opts": option_pairs(own[student]),
        "teachers": {"t": {"config": str(tmp_path / teacher), "weights": "w.pth"}},
        "detectors": {"d": {"config": str(tmp_path / student)}}, "methods": {"A": {}},
        "compare": [{"name": "x", "detector": "d", "methods": ["baseline", "A"]}],
    }  # fmt: skip
    study = Study(spec, str(tmp_path), trusted=True)
    of = {run.method: " ".join(run.command()[3:]) for run in study.by_folder.values()}
    assert " ".join(own[teacher]) in of["teacher"] and "decay" not in of["teacher"].lower()
    assert all(" ".join(own[student]) in of[method] for method in ("baseline", "A"))


CHANNELS = {
    "yaml": ("MODEL.FPN.OUT_CHANNELS", lambda cfg: cfg.MODEL.FPN.OUT_CHANNELS),
    "py": ("model.backbone.out_channels", lambda cfg: cfg.model.backbone.out_channels),
}


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("student,teacher", itertools.product(CHANNELS, repeat=2))
def test_a_teacher_is_built_as_it_was_trained(student, teacher, trained, tmp_path):
    plain = {"yaml": tiny_config().dump(), "py": LAZY}
    for name in {student, teacher}:
        (tmp_path / f"d.{name}").write_text(plain[name])
    config = str(tmp_path / f"d.{teacher}")
    kept = {"iterations": 1} if trained else {"weights": "w.pth"}
    key, channels = CHANNELS[teacher]
    spec = {
        "iterations": 1, "seeds": [1], "methods": {"A": {}},
        "teachers": {
            "t": {"config": config, **kept, "opts": {key: 48}},
            "u": {"config": config, **kept},
        },
        "detectors": {"d": {"config": str(tmp_path / f"d.{student}")}},
        "compare": [{"name": "x", "detector": "d", "methods": ["A"], "teachers": ["t", "u"]}],
    }  # fmt: skip
    study = Study(spec, str(tmp_path), trusted=True)
    for run in study.by_folder.values():
        if run.method == "teacher":
            continue
        args = train_net.argument_parser().parse_args(run.command()[3:])
        source = teacher_source(train_net._read(args))
        built = build_detector._load_config(source, source.config_file)
        assert channels(built) == (48 if run.teacher == "t" else 16)


def test_configs_of_one_file_name_are_two_detectors():
    assert _short_names(["a/s.yaml", "b/s.yaml", "c/t.py"]) == ["a/s", "b/s", "t"]


def test_every_run_has_the_threads_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr("skd.study.common.devices.cores", lambda: 8)
    assert default_threads(4, 11) == 2 and default_threads(8, 2) == 4
    assert same_threads(str(tmp_path), 0, 2) == 2
    assert same_threads(str(tmp_path), 0, 8) == 2  # the last run of eleven
    with pytest.raises(ValueError, match="--threads is 3, but runs in .* had 2"):
        same_threads(str(tmp_path), 3, 8)


def test_a_gpu_for_each_run(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-ab")
    assert visible_gpus() == ["2", "GPU-ab"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1", "2"]
    on = [ChildRun("", "", "", 1, gpu=gpu) for gpu in ("0", "2", "1", "0")]
    assert least_used(["0", "1", "2"], on[:2]) == "1" and least_used(["0", "1", "2"], on) == "1"
    assert least_used([], on) == ""


def test_a_run_sees_its_gpu_and_threads(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("VERSION: 2\n")
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"
    run = ChildRun("x", str(tmp_path / "c.yaml"), str(tmp_path / "run"), 1)
    monkeypatch.setattr(ChildRun, "command", lambda self: [runs.sys.executable, "-c", code])
    run.start(3, gpu="5")
    assert run.process.wait() == 0
    assert (tmp_path / "run" / "stdout.txt").read_text() == "5 3\n"


def test_the_command_of_a_lazy_config(tmp_path):
    (tmp_path / "c.py").write_text("")
    run = ChildRun("x", str(tmp_path / "c.py"), "out", 7, ["SEED", "3", "model.levels", "['p3']"])
    assert run.command()[-4:] == [
        "train.max_iter=7", "train.output_dir=out", "train.seed=3", "model.levels=['p3']"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error,code,words",
    [
        (ValueError("first\n  second"), 2, "error: first second\n"),
        (KeyError("Non-existent config key: X"), 2, "error: Non-existent config key: X\n"),
        (FileNotFoundError(2, "No such file or directory", "a"), 2, "error: [Errno 2]"),
        (RunError("the run 'x' ended with 1"), 1, "error: the run 'x'"),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ],
)
def test_an_error_of_the_users_is_one_line(error, code, words, capsys):
    def main():
        raise error

    assert run_command(main) == code
    printed = capsys.readouterr().err
    assert printed.startswith(words) and printed.count("\n") == 1


def test_output_that_nobody_reads_is_no_error(monkeypatch, capsys):
    """A command before "| head" prints no error."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert run_command(lambda: print("x")) == 141
    monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)


def test_keys_without_opts_say_where_they_go(capsys):
    parser = command_parser("x")
    parser.add_argument("--opts", nargs="*")
    with pytest.raises(SystemExit):
        parser.parse_args(["SOLVER.MAX_ITER", "2"])
    assert (
        "SOLVER.MAX_ITER 2 (KEY VALUE ... of a config go behind --opts)" in capsys.readouterr().err
    )


def test_help_states_defaults_that_say_something():
    parser = command_parser("x")
    parser.add_argument("--a", default=3, help="first")
    parser.add_argument("--b", nargs="*", default=[], help="second")
    text = parser.format_help()
    assert "first (default: 3)" in text and "second\n" in text
