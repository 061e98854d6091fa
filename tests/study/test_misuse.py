"""What a study and the tools refuse, or do not trip over."""

import copy
import json
import os
import stat
from argparse import ArgumentTypeError, Namespace

import pytest
import torch
import yaml
from detectron2.config import LazyConfig
from detectron2.utils.registry import locate

from skd.config import distill, lazy_config, read_config
from skd.config.safe_yaml import UnsafeConfigError
from skd.data import register_shapes
from skd.distillers import DISTILLER_REGISTRY
from skd.engine.run import check_device
from skd.evaluation import match_classes
from skd.modeling.load import load_in_full
from skd.runtime.lock import FolderInUseError
from skd.runtime.whole_files import write_whole
from skd.study.common.command import positive, run_command, whole
from skd.study.common.runs import ChildRun, lazy_options
from skd.study.compare import run as module
from skd.study.compare.design import Study, StudyRun, load_study
from skd.study.compare.results import write_study
from skd.study.compare.same import changed_between
from tests.helpers import ROOT

SPEC = {
    "iterations": 4,
    "seeds": [1],
    "teachers": {"t": {"config": "configs/shapes/teacher.yaml", "weights": "x.pth"}},
    "detectors": {"d": {"config": "configs/shapes/student.yaml"}},
    "methods": {"fgd": {"MODEL.DISTILLER.NAME": "FGD"}},
    "compare": [{"name": "c", "detector": "d", "methods": ["baseline", "fgd"]}],
}


def spec(**changes):
    return {**copy.deepcopy(SPEC), **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": {"fgd": {"MODEL.TEACHER.CONFIG_FILE": "evil.py"}}},
        {"methods": {"fgd": {"d": {"MODEL.TEACHER.CONFIG_FILE": "evil.py"}}}},
        {"methods": {"fgd": {"MODEL": "{'TEACHER': {'CONFIG_FILE': 'evil.py'}}"}}},
        {"methods": {"fgd": {"model.distiller": "{_target_: os.system}"}}},
        {"methods": {"fgd": {"train.output_dir": "${oc.env:HOME}"}}},
        {"methods": {"fgd": {"MODEL.TEACHER.HALF_SIZE.CONFIG_FILE": "evil.py"}}},
        {"methods": {"fgd": {"MODEL.TEACHER.HALF_SIZE": "${oc.env:HOME}"}}},
        {"opts": ["MODEL.TEACHER.CONFIG_FILE", "evil.py"]},
        {"detectors": {"d": {"config": "s.yaml", "opts": {"model.teacher.config_file": "e.py"}}}},
        {"teachers": {"t": {"config": "t.yaml", "weights": "x", "opts": {"a._target_": "b"}}}},
    ],
)
def test_a_study_file_cannot_lead_to_code(changes, tmp_path):
    with pytest.raises(UnsafeConfigError, match="of the study has"):
        Study(spec(**changes), str(tmp_path))


def test_a_whole_number_is_one_for_a_key_of_fractions(tmp_path):
    whole = {"MODEL.DISTILLER.BALANCE.SHARE": 3, "SOLVER.BASE_LR": 1}
    Study(spec(methods={"fgd": whole}), str(tmp_path)).check()


def test_a_study_of_half_the_teachers_size_can_be_run(tmp_path):
    study = Study(load_study(os.path.join(ROOT, "configs", "every", "shapes.yaml")), str(tmp_path))
    study.check()
    runs = study.runs(["Teacher's images at half size"])
    options = {(run.method, *zip(run.opts[::2], run.opts[1::2])) for run in runs}
    assert [o[0] for o in options if ("MODEL.TEACHER.HALF_SIZE", "True") in o] == 3 * ["half size"]


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"seeds": 3}, "seeds of the study is 3; it must be a list"),
        ({"teachers": []}, r"teachers of the study is \[\]"),
        ({"teachers": {"t": None}}, "teachers.t of the study is None"),
        ({"detectors": {"d": None}}, "detectors.d of the study is None"),
        ({"detectors": {1: {"config": "x"}}}, "detectors of the study is .*names"),
        ({"methods": ["FGD"]}, "methods of the study is"),
        ({"compare": None}, "compare of the study is None"),
        ({"compare": [{"name": "c", "methods": ["fgd"]}]}, r"compare\[0\] of the study is"),
        ({"iterations": "x"}, "iterations of the study is 'x'; it must be a whole number"),
        ({"opts": "MODEL.DEVICE cpu"}, "opts of the study is 'MODEL.DEVICE cpu'"),
        ({"opts": ["MODEL.DEVICE"]}, "opts of the study"),
    ],
)
def test_a_malformed_study_is_told_by_key_value_and_expectation(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        Study(spec(**changes), str(tmp_path))


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"config": "nowhere.yaml"}, "Unknown teacher 'nowhere.yaml'"),
        ({"weights": "nowhere.pth"}, "Teacher 't': no checkpoint 'nowhere.pth'"),
        ({"opts": {"DATASETS.TEST": "('nowhere',)"}}, "DATASETS.TEST names 'nowhere', which no"),
    ],
)
def test_a_teacher_or_dataset_that_is_not_there_is_told_before_any_run(changes, words, tmp_path):
    register_shapes()
    teacher = {"config": "configs/shapes/teacher.yaml", "weights": "configs/shapes/teacher.pth"}
    Study(spec(teachers={"t": teacher}), str(tmp_path)).check_files()
    with pytest.raises((OSError, ValueError), match=words):
        Study(spec(teachers={"t": {**teacher, **changes}}), str(tmp_path)).check_files()


@pytest.mark.parametrize(
    "text", ["model = (", "raise RuntimeError('boom')", "import nowhere_at_all"]
)
def test_a_python_config_that_fails_is_named(text, tmp_path):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(ValueError, match="Config file '.*c.py' fails when it is run: .*Error"):
        read_config(str(tmp_path / "c.py"))


@pytest.mark.parametrize("device", ["toaster", "cuda:0"])
def test_a_device_that_is_not_there_is_told(device, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=f"MODEL.DEVICE is '{device}'"):
        check_device(device, "MODEL.DEVICE")
    check_device("cpu", "MODEL.DEVICE")


def test_a_device_or_folder_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="is no file, and cannot be replaced"):
            write_whole(str(tmp_path / name), lambda f: f.write(b"x"))
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def finish(run, note=True):
    os.makedirs(run.folder)
    open(os.path.join(run.folder, "model_final.pth"), "w").close()
    with open(os.path.join(run.folder, "metrics.json"), "w") as f:
        f.write(json.dumps({"iteration": 3, "bbox/AP": 12.0}) + "\n")
    if note:
        module._note_commands([run])


def test_a_changed_study_is_not_finished(tmp_path):
    run = StudyRun("x", "configs/shapes/student.yaml", str(tmp_path / "a"), 4)
    finish(run)
    module._check_commands([run])
    run.opts, run.implied = ["MODEL.TEACHER.OPTS", "[]"], 2  # as earlier versions left it out
    module._check_commands([run])
    run.implied = 0
    with pytest.raises(ValueError, match="holds another run than 'x' is now"):
        module._check_commands([run])
    run.opts = ["SOLVER.BASE_LR", "9.0"]
    with pytest.raises(ValueError, match="holds another run than 'x' is now"):
        module._check_commands([run])
    other = StudyRun("y", "configs/shapes/student.yaml", str(tmp_path / "b"), 4)
    finish(other, note=False)
    with pytest.raises(ValueError, match="holds a finished run and no command.json"):
        module._check_commands([other])


def test_a_study_with_more_datasets_may_go_on_in_the_folder_of_another(tmp_path):
    one, other = (["--register-coco", name, f"{name}.json", "images"] for name in ("one", "other"))
    run = StudyRun("x", "configs/shapes/student.yaml", str(tmp_path / "a"), 4, flags=one)
    finish(run)
    run.flags = [*other, *one]
    module._check_commands([run])
    run.flags = [*one[:2], "changed.json", "images"]
    with pytest.raises(ValueError, match="holds another run than 'x' is now"):
        module._check_commands([run])


def test_things_that_changed_from_one_call_to_the_next_are_told(tmp_path):
    """Of runs that should have them in common; what the study sets, and a seed, is each one's."""
    own = {"fgd": {"MODEL.DISTILLER.NAME": "FGD"}, "lr": {"SOLVER.BASE_LR": 3}}
    tables = [{"name": "c", "detector": "d", "methods": ["baseline", "fgd", "lr"]}]
    study = Study(spec(seeds=[1, 2], methods=own, compare=tables), str(tmp_path))
    runs = {(run.method, run.seed): run for run in study.runs()}

    def note(method, seed, teacher="aaaa", data="dddd", **changes):
        config = {"SEED": seed, "SOLVER.BASE_LR": 3 if method == "lr" else 1, **changes}
        if method != "baseline":
            config["MODEL.DISTILLER.NAME"] = method
        record = {"config": config, "datasets": {"a": {"annotations": data, "images": "i"}}}
        files = {"teacher": {"path": "x", "sha256": teacher}}
        files = files if method != "baseline" else {}
        os.makedirs(runs[method, seed].folder, exist_ok=True)
        with open(os.path.join(runs[method, seed].folder, "runs.jsonl"), "w") as f:
            f.write(json.dumps({**record, "files": files}) + "\n")
        return [words.partition(".")[2] for words in changed_between(study.runs())]

    for method, seed in runs:
        if method != "teacher":
            assert not note(method, seed)
    (words,) = note("fgd", 2, **{"SOLVER.BASE_LR": 2})
    assert words.startswith(" SOLVER.BASE_LR: 1 (d, baseline, 1), 2 (d, fgd, 2). It changed")
    assert not note("fgd", 2, **{"MODEL.DISTILLER.EVERY": 2})  # the others do not say it
    note("fgd", 1, **{"MODEL.DISTILLER.EVERY": 1})
    assert (
        "EVERY: 1 (d, fgd, 1), 2 (d, fgd, 2)" in note("fgd", 2, **{"MODEL.DISTILLER.EVERY": 2})[0]
    )
    note("fgd", 1)
    assert "SHA-256 of the teacher's file: 'aaaa' (d, fgd, 1), 'bbbb'" in note("fgd", 2, "bbbb")[0]
    assert "annotations of dataset 'a': 'dddd' (d, base" in note("fgd", 2, data="eeee")[0]
    write_study(study, str(tmp_path / "out"), "the command")
    assert "of dataset 'a': 'dddd'" in (tmp_path / "out" / "README.md").read_text()


def test_a_report_is_refused_for_a_changed_study(tmp_path):
    study = Study(spec(), str(tmp_path))
    for run in study.runs():
        finish(run)
    changed = spec(iterations=4000)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(changed))
    args = Namespace(
        study=str(tmp_path / "s.yaml"), register_coco=[], project=[], earlier=[],
        work=str(tmp_path), output=None, report_only=True, only=[], seeds=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="holds another run"):
        module.compare(args, "")


@pytest.mark.parametrize("name", sorted(name for name, _ in DISTILLER_REGISTRY))
def test_a_lazy_student_gets_the_method_of_its_name(name, tmp_path):
    (tmp_path / "c.py").write_text("model = {}\ntrain = dict(max_iter=5)\n")
    cfg = LazyConfig.load(str(tmp_path / "c.py"))
    distill(cfg, "t.yaml", "w")
    cfg = lazy_config.override(cfg, lazy_options("MODEL.DISTILLER.NAME", name))
    assert list(cfg.model.distiller) == ["_target_"]
    assert locate(cfg.model.distiller._target_) is DISTILLER_REGISTRY.get(name)


def test_a_yaml_key_without_a_lazy_counterpart_is_refused(tmp_path):
    (tmp_path / "c.py").write_text("")
    run = ChildRun("x", str(tmp_path / "c.py"), "out", 7, ["SOLVER.STEPS", "()"])
    with pytest.raises(ValueError, match="SOLVER.STEPS has no counterpart"):
        run.command()


@pytest.mark.parametrize("text", ["-1", "x", "1.5", ""])
def test_numbers_of_arguments(text):
    for kind in (whole, positive):
        with pytest.raises(ArgumentTypeError, match="it must be a whole number"):
            kind(text)
    assert whole("0") == 0 and positive("3") == 3
    with pytest.raises(ArgumentTypeError, match="above 0"):
        positive("0")


@pytest.mark.parametrize("error", [UnsafeConfigError("runs code"), FolderInUseError("is busy")])
def test_refusals_are_one_line(error, capsys):
    def main():
        raise error

    assert run_command(main) == 2 and capsys.readouterr().err == f"error: {error}\n"


def test_classes_are_matched_by_exact_names_first():
    assert match_classes(["c", "c++", "c#"], ["c#", "c", "c++"]) == {0: 2, 1: 0, 2: 1}
    assert match_classes(["traffic light"], ["Traffic-Light", "", "++"]) == {0: 0}
    with pytest.raises(ValueError, match="'C' is like several of the model's classes"):
        match_classes(["c", "c++"], ["C"])


def test_weights_of_another_model_are_refused(tmp_path):
    path = str(tmp_path / "w.pth")
    torch.save({"model": {"weight": torch.ones(2, 2), "distiller.x": torch.ones(1)}}, path)
    with pytest.raises(ValueError, match=r"(?s)--model a.*bias"):
        load_in_full(torch.nn.Linear(2, 2), path, "--model a", "--model a")
    load_in_full(torch.nn.Linear(2, 2, bias=False), path, "--model a", "--model a")
