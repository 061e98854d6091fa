"""Faults that are planted, in tiny models; docs/results/doctor has real ones."""

import itertools
from math import isnan
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.structures import BoxMode

from skd import GradientBalance, build_teacher, distill
from skd.evaluation import Quality, class_agnostic_quality, detect
from skd.study.doctor import examine, run_doctor
from skd.study.doctor.pooled import pooled_notes
from skd.study.doctor.teacher import (
    NORMALIZATIONS,
    _annotated,
    _misread,
    is_untrained,
    normalized,
)
from skd.study.doctor.verdict import Verdict
from tests.helpers import LAZY, batch, distilling, lazy_config, tiny_config
from tests.processes import parser_of, run_script


def names(verdict):
    return [finding.name for finding in verdict.findings]


def config(teacher_files, **changes):
    return distilling(tiny_config(), teacher_files, balance=None, **changes)


def test_a_sound_distillation_has_no_findings(teacher_files, shapes):
    verdict = examine(config(teacher_files), iterations=3, images=0)
    assert names(verdict) == [] and "Nothing is wrong that could be found" in str(verdict)
    assert verdict.notes == ["the teacher was not tried on your images."]
    assert set(verdict.terms) == {f"loss_distill_structured_{t}" for t in ("am", "at", "nl")}
    assert all(0.1 < share < 1 and abs(cosine) < 1 for share, cosine in verdict.terms.values())
    assert list(verdict.levels) == ["p2", "p3", "p4", "p5"]
    assert all(0 <= alike <= 1 for alike in verdict.levels.values())


def test_what_a_long_training_does_at_its_start_is_no_finding(teacher_files, shapes):
    """A warm-up, a ramp or a pause takes more iterations than are looked at."""
    cfg = config(teacher_files, MODEL__DISTILLER__EVERY=5)
    cfg.SOLVER.MAX_ITER = 9000
    cfg.MODEL.DISTILLER.BALANCE.WARMUP, cfg.MODEL.DISTILLER.BALANCE.RAMP = 900, 900
    verdict = examine(cfg, iterations=2, images=0)
    assert names(verdict) == [] and all(share > 0.1 for share, _ in verdict.terms.values())


def test_maps_of_a_module_that_says_nothing_of_them(teacher_files, shapes):
    cfg = config(teacher_files, MODEL__STUDENT__FEATURES="backbone.fpn_output3")
    cfg.SOLVER.MAX_ITER = 1  # a schedule has no learning rate beyond
    assert list(examine(cfg, iterations=9, images=0).levels) == ["0"]


@META_ARCH_REGISTRY.register()
class HeadsByThemselves(GeneralizedRCNN):
    """Its heads get features that lead no gradient back to the backbone."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for heads in (self.proposal_generator, self.roi_heads):
            heads.register_forward_pre_hook(
                lambda _, args: (args[0], {k: x.detach() for k, x in args[1].items()}, *args[2:])
            )


@pytest.mark.parametrize(
    "balanced,so", [(True, "maps, so every term has weight 0:"), (False, "maps:")]
)
def test_maps_that_the_detector_s_losses_do_not_reach(balanced, so, teacher_files, shapes):
    cfg = config(
        teacher_files,
        MODEL__STUDENT__META_ARCHITECTURE="HeadsByThemselves",
        MODEL__DISTILLER__BALANCE__ENABLED=balanced,
    )
    (finding,) = examine(cfg, iterations=1, images=0).findings
    assert finding.name == "unused maps" and so in finding.text


@pytest.mark.parametrize("weight", [4e3, 1e-9])
def test_weights_that_drown_or_do_nothing(weight, teacher_files, shapes):
    weights = {f"MODEL__DISTILLER__STRUCTURED__WEIGHT_{t}": weight for t in ("AM", "AT", "NL")}
    cfg = config(teacher_files, MODEL__DISTILLER__BALANCE__ENABLED=False, **weights)
    (finding,) = examine(cfg, iterations=2, images=0).findings
    assert finding.name == "weight" and "ENABLED True, or other weights" in finding.text


def test_a_share_that_drowns(teacher_files, shapes):
    cfg = config(teacher_files, MODEL__DISTILLER__BALANCE__SHARE=3000.0)
    (finding,) = examine(cfg, iterations=2, images=0).findings
    assert finding.name == "weight" and "Set MODEL.DISTILLER.BALANCE.SHARE 3.0" in finding.text


@pytest.mark.parametrize("share,drowns", [(80.0, False), (3000.0, True)])
def test_the_share_of_a_dense_head_may_be_larger(share, drowns, teacher_files, shapes):
    """Of a default of 30: measured are 21 to 57, by the batch."""
    cfg = distilling(tiny_config("retinanet"), teacher_files, balance=True)
    cfg.MODEL.DISTILLER.BALANCE.SHARE = share
    verdict = examine(cfg, iterations=1, images=0)
    assert sum(term for term, _ in verdict.terms.values()) == pytest.approx(share, rel=0.01)
    texts = [finding.text for finding in verdict.findings if finding.name == "weight"]
    assert ["Set MODEL.DISTILLER.BALANCE.SHARE 30.0" in text for text in texts] == [True] * drowns


def test_levels_of_other_sizes(teacher_files, shapes, monkeypatch):
    from skd.modeling.teacher import FrozenTeacher

    tap = FrozenTeacher._tap

    def swapped(self, images):
        tapped = tap(self, images)
        maps = dict(tapped.maps)
        maps["p3"], maps["p4"] = maps["p4"], maps["p3"]
        return tapped._replace(maps=maps)

    monkeypatch.setattr(FrozenTeacher, "_tap", swapped)
    (finding,) = examine(config(teacher_files), iterations=1, images=0).findings
    assert finding.name == "levels" and "p3" in finding.text


def test_a_teacher_that_reads_classes_where_nothing_is_distilled(teacher_files, shapes):
    """All shapes are far below 112 pixels, where poolers leave the finest map."""
    said = "the teacher's box head reads 100% of your objects from p2, which is not distilled: for"
    for kind, expected in (("retinanet", True), ("mask_rcnn", False)):
        cfg = distilling(tiny_config(kind), teacher_files)
        notes = examine(cfg, iterations=1, images=2).notes
        assert any(note.startswith(said) for note in notes) == expected
    cfg = distilling(tiny_config(INPUT__MIN_SIZE_TEST=2048), teacher_files)
    cfg.MODEL.DISTILLER.LEVELS, cfg.INPUT.MAX_SIZE_TEST = ["p3", "p4", "p5"], 2048
    notes = examine(cfg, iterations=1, images=1).notes  # as large as on COCO
    assert not any("box head" in note for note in notes)


def test_boxes_are_read_in_the_size_that_the_teacher_sees():
    """Of 120 pixels in the input: from p3, and from p2 where the teacher sees them at half."""
    teacher = build_model(tiny_config())
    box = {"bbox": [0, 0, 30, 60], "bbox_mode": BoxMode.XYWH_ABS}
    crowd = {"bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1}
    inputs = [{"image": torch.zeros(3, 160, 160), "height": 80, "width": 40}]
    records = [{"annotations": [box, crowd, crowd]}]  # not all of them say how large an image is
    (note,) = pooled_notes(teacher, inputs, records, ["p2", "p4"])
    assert "100% of your objects from p3" in note and "p2, p4 serve the proposals" in note
    assert not pooled_notes(teacher, inputs, records, ["p3", "p4"])
    (note,) = pooled_notes(teacher, inputs, records, ["p3", "p4"], half_size=True)
    assert "100% of your objects from p2" in note
    assert not pooled_notes(teacher, inputs, [{"annotations": [crowd]}], ["p3"])
    assert not pooled_notes(teacher, [], [], ["p3"]) and not pooled_notes(
        teacher, inputs, records, []
    )


@pytest.mark.parametrize("form", ["yaml", "lazy"])
def test_the_doctor_knows_a_teacher_at_half_size(
    form, teacher_files, shapes, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr("skd.study.doctor.teacher.pooled_notes", lambda *x: seen.append(x) or [])
    if form == "lazy":
        cfg = lazy_config(tmp_path)
        distill(cfg, *teacher_files)
        cfg.model.teacher.half_size = True
    else:
        cfg = config(teacher_files, MODEL__TEACHER__HALF_SIZE=True)
    examine(cfg, iterations=1, images=1)
    assert seen[0][3:] == (["p2", "p3", "p4", "p5"], True)


def test_a_teacher_that_finds_nothing(teacher_files, shapes):
    verdict = examine(config(teacher_files), iterations=0, images=2)
    assert names(verdict) == ["untrained teacher"] and "give --student-weights" in str(verdict)


def test_weights_of_another_model_are_refused(teacher_files, shapes, tmp_path):
    torch.save({"model": {"other.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    other = str(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is .*takes none of its 1 tensors"):
        examine(config(teacher_files, MODEL__WEIGHTS=other), iterations=1, images=0)
    with pytest.raises(ValueError, match=r"\(--student-weights\) does not match its model"):
        examine(config(teacher_files), iterations=0, images=1, student_weights=other)


def test_a_student_that_is_not_there_is_said_before_anything_is_read_or_trained():
    given = ["--config-file", "no_config.yaml", "--student-weights", "no_student.pth"]
    with pytest.raises(ValueError, match="--student-weights: no file 'no_student.pth'"):
        run_doctor(parser_of("tools/doctor.py").parse_args(given))


def test_an_untrained_detector_is_told_by_its_biases():
    from detectron2.modeling import build_model

    for kind in ("mask_rcnn", "retinanet"):
        model = build_model(tiny_config(kind))
        assert is_untrained(model)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p += 0.1 * torch.rand_like(p) if name.endswith("bias") else 0
        assert not is_untrained(model)


RECORDS = [
    {
        "image_id": 5, "height": 40, "width": 40,
        "annotations": [{"bbox": [4, 4, 10, 10], "bbox_mode": 1, "category_id": 3}],
    }
]  # fmt: skip


def test_quality_is_ap_of_any_class():
    right = {"image_id": 5, "category_id": 1, "bbox": [4, 4, 10, 10], "score": 0.7}
    assert class_agnostic_quality([right], RECORDS) == Quality(
        pytest.approx(100), pytest.approx(100), 0.7
    )
    assert class_agnostic_quality([{**right, "bbox": [20, 20, 5, 5]}], RECORDS)[:2] == (0, 0)
    assert class_agnostic_quality([], RECORDS) == Quality(0, 0, 0)
    crowd = {**RECORDS[0]["annotations"][0], "iscrowd": 1}
    for annotations in ([], [crowd]):  # nothing to find: no AP, not one of 0
        seen = class_agnostic_quality([right], [{**RECORDS[0], "annotations": annotations}])
        assert isnan(seen.ap) and isnan(seen.ap50) and seen.best_score == 0.7


def test_a_test_set_without_objects_says_nothing_of_the_teacher(shapes, new_datasets):
    DatasetCatalog.register("kept_back", lambda: [{**RECORDS[0], "annotations": []}])
    verdict = Verdict()
    cfg = tiny_config(DATASETS__TEST=("kept_back",))
    assert _annotated(cfg, verdict)[0] == "tiny_train"
    assert "no object of 'kept_back' counts" in str(verdict)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match="Neither DATASETS.TEST nor DATASETS.TRAIN names a data"):
        _annotated(cfg, verdict)


def test_normalization_is_put_back():
    from detectron2.modeling import build_model

    model = build_model(tiny_config())
    mean, std = model.pixel_mean.clone(), model.pixel_std.clone()
    with normalized(model, *NORMALIZATIONS["to [0, 1]"]):
        assert model.pixel_std.unique().item() == 255
    assert torch.equal(model.pixel_mean, mean) and torch.equal(model.pixel_std, std)
    assert detect(model.eval(), []) == []


def test_command(teacher_files, shapes):
    config, weights = teacher_files
    args = ["--teacher", config, "--teacher-weights", weights, "--iterations", 1, "--images", 0]
    out = run_script(
        "tools/doctor.py", "--config-file", "configs/shapes/student.yaml", *args, datasets=shapes
    )
    assert "of the detector's gradient" in out and "Nothing is wrong" in out


def test_command_with_a_lazy_config(teacher_files, shapes, tmp_path):
    (tmp_path / "student.py").write_text(LAZY)
    command = ["--config-file", tmp_path / "student.py", "--teacher", teacher_files[0]]
    command += ["--teacher-weights", teacher_files[1], "--iterations", 1, "--images", 0]
    opts = ["dataloader.train.dataset.names=tiny_train", "model.balance.warmup=1"]
    args = parser_of("tools/doctor.py").parse_args([*map(str, command), "--", *opts])
    assert run_doctor(args) == 0
    args.opts = ["train.device=cuda:9"]
    with pytest.raises(ValueError, match="train.device is 'cuda:9', and PyTorch finds no GPU"):
        run_doctor(args)


def lazy(tmp_path, teacher_files, *options):
    cfg = lazy_config(tmp_path, *options)
    distill(cfg, *teacher_files)
    return cfg


@pytest.mark.parametrize("balance", [None, "auto", L(GradientBalance)(share=3.0)])
def test_a_lazy_config_that_leaves_the_balance_or_its_length_to_the_run(
    balance, teacher_files, shapes, tmp_path
):
    """The default teacher stops at a third; every iteration is looked at all the same."""
    cfg = lazy(tmp_path, teacher_files, "train.max_iter=4")
    cfg.model.pop("balance")
    if balance is not None:
        cfg.model.balance = balance
    assert len(examine(cfg, iterations=4, images=0).terms) == 3


def test_a_lazy_config_is_looked_at_as_a_yaml_is(teacher_files, shapes, tmp_path):
    cfg = lazy(tmp_path, teacher_files, "train.evaluate_teacher=3")
    cfg.model.every, cfg.model.balance.warmup, cfg.model.balance.share = 5, 900, 3000.0
    verdict = examine(cfg, iterations=2, images=2)
    assert set(verdict.terms) == {f"loss_distill_structured_{t}" for t in ("am", "at", "nl")}
    assert list(verdict.levels) == ["p2", "p3", "p4", "p5"]
    drowned, nothing = verdict.findings
    assert "Set model.balance.share=3.0, the default" in drowned.text
    assert nothing.name == "untrained teacher" and verdict.teacher < 1
    assert cfg.model.every == 5 and cfg.train.evaluate_teacher == 3  # the caller's own
    no_data = lazy(tmp_path, teacher_files, "dataloader.train.dataset.names=[]")
    with pytest.raises(ValueError, match="dataloader.train.dataset.names is .*; it must name"):
        examine(no_data, iterations=1)


def own_batches():
    return itertools.repeat(batch())


def own_teacher(**kwargs):
    return build_teacher(**kwargs)


def test_a_lazy_config_s_own_loader_and_teacher(teacher_files, shapes, tmp_path):
    """Neither gets an argument that only Detectron2's and this project's take."""
    cfg = lazy(tmp_path, teacher_files)
    cfg.dataloader.train = L(own_batches)()
    cfg.model.teacher["_target_"] = own_teacher
    verdict = examine(cfg, iterations=1, images=1)
    assert names(verdict) == [] and verdict.terms and verdict.teacher is None
    assert "model.teacher is not made by skd.build_teacher" in verdict.notes[0]


def three_batches():
    yield from [batch()] * 3


def broken_batches():
    raise ValueError("row 3 of boxes.csv has 5 columns")
    yield


def test_what_a_lazy_config_s_own_loader_does_is_its_own(teacher_files, shapes, tmp_path):
    cfg = lazy(tmp_path, teacher_files)
    cfg.dataloader.train = L(three_batches)()  # fewer than are asked for
    assert names(examine(cfg, iterations=9, images=0)) == []
    cfg.dataloader.train = L(broken_batches)()
    with pytest.raises(ValueError, match="row 3 of boxes.csv"):
        examine(cfg, iterations=9, images=0)


def test_a_loader_s_options_for_workers_are_left_out_with_them(teacher_files, shapes, tmp_path):
    cfg = lazy(tmp_path, teacher_files, "dataloader.train.num_workers=2")
    cfg.dataloader.train.prefetch_factor, cfg.dataloader.train.persistent_workers = 4, True
    assert names(examine(cfg, iterations=1, images=0)) == []
    assert cfg.dataloader.train.prefetch_factor == 4


@pytest.mark.parametrize("balanced,found", [(None, "diverged"), (False, "weight")])
def test_a_training_that_diverges_is_a_finding(balanced, found, teacher_files, shapes):
    weights = {f"MODEL__DISTILLER__STRUCTURED__WEIGHT_{t}": 1e5 for t in ("AM", "AT", "NL")}
    cfg = config(teacher_files, MODEL__DISTILLER__BALANCE__ENABLED=balanced, **weights)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = 1e6, 0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    verdict = examine(cfg, iterations=9, images=0)
    assert names(verdict) == [found] and verdict.terms


def test_another_error_of_a_step_is_no_finding(teacher_files, shapes):
    cfg = config(teacher_files, MODEL__DISTILLER__BALANCE__SHARES=[["structured_xx", 1.0]])
    with pytest.raises(ValueError, match="SHARES names .'structured_xx'"):
        examine(cfg, iterations=1, images=1)


@pytest.mark.parametrize("channels,looks", [(0, 2), (1, 2), (3, 8)])
def test_a_teacher_that_does_not_normalize_as_detectron2_does(channels, looks):
    """One without pixel_mean, or of gray images: only the colors are tried the other way."""
    model, seen = torch.nn.Linear(2, 2), []
    if channels:
        model.pixel_mean, model.pixel_std = torch.rand(2, channels)
    teacher = SimpleNamespace(model=model, input_format="BGR")

    def look(flip=False):
        seen.append(flip)
        return Quality(50.0, 30.0 + 10 * flip, 0.9)

    look()
    (finding,) = _misread(teacher, look, False, Quality(50.0, 30.0, 0.9))
    assert finding.name == "color order" and len(seen) == looks
