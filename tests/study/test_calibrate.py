"""tools/calibrate.py: what it measures, and what it refuses."""

import json
import os
import shutil

import pytest
import torch
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model

from skd.runtime.loader import DataError
from skd.study.calibrate import calibrate, strength
from skd.study.common.result_files import read_lines
from tests.helpers import LAZY, batch, distilling, tiny_config
from tests.processes import parser_of


def run(cfg, teacher_files, folder, *opts, flags=()):
    path = folder / "student.yaml"
    path.write_text(cfg.dump())
    names = ["--config-file", path, "--teacher", teacher_files[0], "--methods", "AT", "PKD"]
    command = [*names, "--teacher-weights", teacher_files[1], *flags]
    command += ["--", "MODEL.DEVICE", "cpu", *opts]
    calibrate(parser_of("tools/calibrate.py").parse_args([*map(str, command)]))


def test_methods_are_compared(teacher_files, shapes, tmp_path, capsys):
    run(tiny_config(), teacher_files, tmp_path)
    printed = capsys.readouterr().out
    assert "AT: gradient" in printed and "PKD: gradient" in printed and "teaches" not in printed


def test_a_pause_between_iterations_that_distil_changes_nothing(
    teacher_files, shapes, tmp_path, capsys
):
    for every in ("1", "4"):
        run(tiny_config(), teacher_files, tmp_path, "MODEL.DISTILLER.EVERY", every)
    once, again = capsys.readouterr().out.split("at the first weights")[:2]
    assert once.splitlines()[-1] and once.splitlines()[-2:] == again.splitlines()[-2:]


def test_a_warm_up_and_a_ramp_change_nothing(teacher_files, shapes, tmp_path, capsys):
    for name in ("WARMUP", "RAMP"):
        opts = [f"MODEL.DISTILLER.BALANCE.{name}", 100, "SOLVER.MAX_ITER", 400]
        flags = ["--balanced", "--output", tmp_path / name]
        run(tiny_config(), teacher_files, tmp_path, *opts, flags=flags)
        balanced = [row["ratio"] for row in read_lines(tmp_path / name) if row["balanced"]]
        assert all(0.3 < ratio < 30 for ratio in balanced)
    assert "teaches nothing" not in capsys.readouterr().out


def test_a_combination_in_the_place_of_the_methods_is_refused(teacher_files, shapes, tmp_path):
    opts = ["MODEL.DISTILLER.COMBINE", "[['FGD', 1.0]]"]
    with pytest.raises(ValueError, match="COMBINE is set; leave it out: --methods says what runs"):
        run(tiny_config(), teacher_files, tmp_path, *opts)


def test_a_lazy_config_an_own_dataset_and_relative_paths(
    teacher_files, shapes, tmp_path, monkeypatch, capsys
):
    (tmp_path / "student.py").write_text(LAZY)
    for source, name in zip(teacher_files, ("t.yaml", "t.pth")):
        shutil.copy(source, tmp_path / name)
    shutil.copytree(next((shapes / "skd_shapes").glob("*/skd_shapes_val")), tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    command = ["--config-file", "student.py", "--teacher", "t.yaml", "--teacher-weights", "t.pth"]
    command += ["--register-coco", "of_calibrate", "set/annotations.json", "set/images"]
    command += ["--methods", "AT", "--", "dataloader.train.dataset.names=of_calibrate"]
    command[6:6] = ["--balanced", "--output", "found.jsonl"]
    calibrate(parser_of("tools/calibrate.py").parse_args(command))
    assert "AT, balanced: gradient" in capsys.readouterr().out
    own, balanced = read_lines("found.jsonl")
    assert own["method"] == balanced["method"] == "AT" and own["own"] == balanced["own"]
    assert own["ratio"] > 10 * balanced["ratio"] and 0.3 < balanced["ratio"] < 30


def test_weights_of_which_nothing_matches_are_an_error(teacher_files, shapes, tmp_path):
    torch.save({"model": {"other.weight": torch.ones(3)}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is '.*w.pth', and the model takes none"):
        run(tiny_config(), teacher_files, tmp_path, "MODEL.WEIGHTS", str(tmp_path / "w.pth"))


def test_a_frozen_backbone_is_named(teacher_files):
    model = build_model(distilling(tiny_config(), teacher_files)).train()
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r"None of the backbone's \d+ parameters is trained"):
        strength(model, batch())


def test_a_term_without_a_gradient_is_named(teacher_files):
    model = build_model(distilling(tiny_config(), teacher_files, MODEL__DISTILLER__NAME="AT"))
    idle = {"loss_distill_idle": {"p3": torch.ones(())}}
    model.distiller.register_forward_hook(lambda module, args, terms: {**terms, **idle})
    found = strength(model.train(), batch())
    assert found.idle == ["loss_distill_idle"] and found.ratio > 0
    model.distiller.register_forward_hook(lambda module, args, terms: idle)
    found = strength(model, batch())
    assert found.ratio == 0 and found.distillation == 1


def test_an_image_that_cannot_be_read_is_named(teacher_files, shapes, tmp_path):
    folder = os.path.join(tmp_path, "set")
    source = os.path.join(shapes, "skd_shapes", os.listdir(shapes / "skd_shapes")[0])
    shutil.copytree(os.path.join(source, "skd_shapes_val"), folder)
    content = json.load(open(os.path.join(folder, "annotations.json")))
    for image in content["images"]:
        path = os.path.join(folder, "images", image["file_name"])
        os.truncate(path, 100)  # its header, which the check before reads, is good
    name = f"broken_{os.path.basename(tmp_path)}"
    register_coco_instances(name, {}, f"{folder}/annotations.json", f"{folder}/images")
    with pytest.raises(DataError, match=f"Image '{folder}/images/.*cannot be used"):
        run(tiny_config(), teacher_files, tmp_path, "DATASETS.TRAIN", f"('{name}',)")
