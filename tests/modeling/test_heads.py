"""Students that learn from the teacher's heads too: at their own anchors, proposals and boxes."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import launch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from skd import (
    DistillRCNN,
    StructuredDistiller,
    TeacherHeads,
    build_teacher,
    distill,
    student_config,
    student_of,
)
from skd.engine import describe, wrap_data_parallel
from skd.modeling.classes import class_names, classes_of_run
from skd.modeling.heads.teacher_heads import shared_classes
from tests.helpers import (
    DEVICES,
    batch,
    check_resume,
    distilling,
    lazy_config,
    save_detector,
    step,
    tiny_config,
    train_until,
)
from tests.processes import leave_together

CLASSES = ["a", "b", "c", "d", "e", "f"]
ALL = ["RPNHead", "BoxHead", "MaskHead"]
TERMS = {f"loss_distill_{t}" for t in ("rpn_cls", "rpn_reg", "box_cls", "box_reg", "mask")}


def config(
    teacher_files, names=ALL, balance=False, student=None, theirs=CLASSES, ours=CLASSES, **changes
):
    return distilling(
        student or tiny_config(), teacher_files, balance=balance,
        MODEL__DISTILLER__HEADS__NAMES=names, MODEL__DISTILLER__HEADS__STUDENT_CLASSES=ours,
        MODEL__DISTILLER__HEADS__TEACHER_CLASSES=theirs, **changes,
    )  # fmt: skip


def build(teacher_files, *args, **kwargs):
    """What :func:`config` says, with the same first weights each time."""
    torch.manual_seed(0)
    return build_model(config(teacher_files, *args, **kwargs))


def test_the_terms_come_on_top_and_change_no_other_loss(teacher_files):
    losses, grads = step(build(teacher_files))
    expected, baseline = step(build(teacher_files, names=[]))
    assert losses.keys() - expected.keys() == TERMS
    assert all(torch.equal(losses[k], v) for k, v in expected.items())
    assert all(losses[k].isfinite() and losses[k] > 0 for k in TERMS)
    assert grads.keys() == baseline.keys()
    for part in ("rpn_head.objectness", "box_predictor.cls", "box_predictor.bbox", "predictor.w"):
        (name,) = [k for k in grads if part in k and k.endswith("weight")]
        assert not torch.equal(grads[name], baseline[name])


def test_what_leaves_no_trace(teacher_files):
    model, plain = build(teacher_files), build(teacher_files, names=[])
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert len(list(model.parameters())) == len(list(plain.parameters()))
    assert plain.teacher.whole is None and not model.teacher.whole.training
    assert not any(p.requires_grad for p in model.teacher.parameters())
    step(model)
    hooks = [m for m in student_of(model).modules() if m._forward_hooks]
    assert not hooks
    twin = copy.deepcopy(model)
    assert twin.teacher is model.teacher and TERMS <= step(twin)[0].keys()


def test_a_student_that_is_its_own_teacher_agrees(teacher_files):
    """Same weights, same images: box distances are 0, and cross entropies are the entropies."""
    cfg = tiny_config(width=6, fpn=24, MODEL__WEIGHTS=teacher_files[1])
    model = build(teacher_files, student=cfg, MODEL__DISTILLER__HEADS__BACKGROUND_WEIGHT=1.0)
    model.load_state_dict(torch.load(teacher_files[1])["model"], strict=False)
    model.backbone.eval()  # as the teacher's norms
    losses, _ = step(model)
    assert losses["loss_distill_rpn_reg"] < 1e-4 and losses["loss_distill_box_reg"] < 1e-4
    with torch.no_grad():
        images = model.preprocess_image(batch())
        maps = model.backbone(images.tensor)
        logits, _ = model.proposal_generator.rpn_head([maps[f"p{i}"] for i in range(2, 7)])
        entropy = 0
        for x in logits:
            p = x.double().sigmoid()
            entropy += -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    assert losses["loss_distill_rpn_cls"].item() == pytest.approx(entropy.item(), rel=1e-4)


def test_classes_are_matched_by_name(teacher_files, caplog):
    match = shared_classes(["cat", "dog", "cow"], ["cow", "cat", "pig"])
    assert match == ([0, 2], [1, 0])
    said = " ".join(r.getMessage() for r in caplog.records)
    assert (
        "the teacher has no such class: dog" in said
        and "the student has no such class: pig" in said
    )
    with pytest.raises(ValueError, match="no class of the same name: x; y"):
        shared_classes(["x"], ["y"])
    with pytest.raises(ValueError, match="stands twice"):
        shared_classes(["x", "x"], ["x"])


def test_another_order_of_the_teachers_classes_is_another_loss(teacher_files):
    straight, _ = step(build(teacher_files))
    turned, _ = step(build(teacher_files, theirs=CLASSES[::-1]))
    fewer, _ = step(build(teacher_files, theirs=["x", "y", *CLASSES[2:]]))
    for name in ("loss_distill_box_cls", "loss_distill_box_reg"):
        assert len({straight[name].item(), turned[name].item(), fewer[name].item()}) == 3
    assert straight["loss_distill_rpn_cls"] == turned["loss_distill_rpn_cls"]


@pytest.mark.parametrize(
    "kind,names,whose,theirs",
    [
        # a seventh name would be the place of the background
        ("mask_rcnn", ["BoxHead"], "teacher", ["x", "y", *CLASSES[:5]]),
        ("mask_rcnn", ["MaskHead"], "teacher", CLASSES[:5]),
        ("mask_rcnn", ["BoxHead"], "student", CLASSES),
        ("retinanet", ["DenseHead"], "student", CLASSES),
    ],
)
def test_as_many_names_as_classes(teacher_files, kind, names, whose, theirs):
    changes = {"student": {"MODEL__ROI_HEADS__NUM_CLASSES": 5, "MODEL__RETINANET__NUM_CLASSES": 5}}
    student = tiny_config(kind, **changes.get(whose, {}))
    count = "5 classes apart, and its classes' names are 6" if whose == "student" else "6 classes"
    with pytest.raises(ValueError, match=f"The {whose} tells {count}.* give .*{whose.upper()}_CL"):
        build(teacher_files, names, student=student, theirs=theirs)


def test_a_student_of_one_class_learns_it_from_a_teacher_of_many(teacher_files):
    one = tiny_config(MODEL__ROI_HEADS__NUM_CLASSES=1)
    model = build(teacher_files, student=one, ours=["c"])
    losses, _ = step(model, batch(classes=1))
    assert all(losses[k].isfinite() and losses[k] > 0 for k in TERMS)


def test_objects_that_the_teacher_does_not_know_are_no_background(teacher_files):
    """The box head's proposals with such a label are left out."""
    model = build(teacher_files, names=["BoxHead"], theirs=["x", *CLASSES[1:]])
    heads, seen = model.roi_heads, {}
    heads.box_pooler.register_forward_hook(lambda m, x, y: seen.update(boxes=x[1]))
    heads.box_predictor.register_forward_hook(lambda m, x, y: seen.update(logits=y[0]))
    heads.register_forward_hook(lambda m, x, y: seen.update(proposals=y[0]))
    inputs = batch()
    for x in inputs:
        x["instances"].gt_classes[:] = torch.tensor([0, 1])  # the first is not known
    losses, _ = step(model, inputs)
    theirs, maps = model.teacher.whole.roi_heads, model.teacher(inputs, "BGR")
    pooled = theirs.box_pooler([maps[n] for n in theirs.box_in_features], seen["boxes"])
    p = theirs.box_predictor(theirs.box_head(pooled))[0][:, 1:].softmax(1)
    terms = -p * seen["logits"][:, 1:].log_softmax(1) * torch.tensor([1, 1, 1, 1, 1, 1.5])
    known = torch.cat([x.gt_classes for x in seen["proposals"]]) != 0
    assert 0 < known.sum() < len(known)
    expected = terms.sum(1)[known].mean()
    torch.testing.assert_close(losses["loss_distill_box_cls"], expected, rtol=1e-4, atol=0)


def watch(model):
    """What a step gives to and gets from the student's heads, by the module's name."""
    seen = {}
    names = ("roi_heads.box_pooler", "roi_heads.box_predictor", "roi_heads.mask_head",
             "roi_heads.mask_head.predictor", "proposal_generator.rpn_head")  # fmt: skip
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda m, x, y, name=name.rpartition(".")[2]: seen.update({name: (x, y)})
        )
    return seen


@pytest.fixture
def compared(teacher_files):
    """
    A student whose deltas have other weights than the teacher's (10, 10, 5, 5 for boxes, 1 for
    anchors), the terms of a step, what its heads did in it, the teacher and its maps.
    """
    weights = {
        "MODEL__RPN__BBOX_REG_WEIGHTS": (2.0, 3.0, 4.0, 5.0),
        "MODEL__ROI_BOX_HEAD__BBOX_REG_WEIGHTS": (6.0, 7.0, 8.0, 9.0),
    }
    model = build(teacher_files, student=tiny_config(**weights))
    teacher, seen = model.teacher.whole, watch(model)
    for detector in (model, teacher):  # an untrained one says 0.5 of every pixel and class
        torch.nn.init.normal_(detector.roi_heads.mask_head.predictor.weight)
    losses, _ = step(model)
    with torch.no_grad():
        yield losses, seen, teacher, model.teacher(batch(), "BGR")


def test_the_terms_of_anchors_are_those_of_the_equations(compared):
    losses, seen, teacher, maps = compared
    rpn = teacher.proposal_generator
    wanted = rpn.rpn_head([maps[n] for n in rpn.in_features])
    factors = torch.tensor([2, 3, 4, 5]).double()
    classes = boxes = 0
    for s, d_s, t, d_t in zip(*seen["rpn_head"][1], *wanted):
        s, t = (x.double().permute(0, 2, 3, 1).flatten() for x in (s, t))
        p, q = s.sigmoid(), t.sigmoid()
        classes -= (q * p.log() + 1.5 * (1 - q) * (1 - p).log()).mean()
        d_s, d_t = (  # as Detectron2's RPN.forward orders them
            x.double().unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)
            for x in (d_s, d_t)
        )
        distance = (d_s / factors - d_t).abs().sum(1)
        boxes += (q * distance).sum() / q.sum()
    assert losses["loss_distill_rpn_cls"].item() == pytest.approx(classes.item(), rel=1e-4)
    assert losses["loss_distill_rpn_reg"].item() == pytest.approx(boxes.item(), rel=1e-3)


def test_the_terms_of_boxes_and_masks_are_those_of_the_equations(compared):
    losses, seen, teacher, maps = compared
    heads = teacher.roi_heads
    pooled = heads.box_pooler([maps[n] for n in heads.box_in_features], seen["box_pooler"][0][1])
    t, d_t = (x.double() for x in heads.box_predictor(heads.box_head(pooled)))
    s, d_s = (x.double() for x in seen["box_predictor"][1])
    p, q = s.softmax(1), t.softmax(1)
    weights = torch.tensor([1, 1, 1, 1, 1, 1, 1.5]).double()
    classes = -(weights * q * p.log()).sum() / len(q)
    ours, theirs = torch.tensor([6, 7, 8, 9]).double(), torch.tensor([10, 10, 5, 5]).double()
    boxes = total = 0
    for m in range(len(q)):
        for c in range(6):
            one, other = d_s[m, 4 * c : 4 * c + 4] / ours, d_t[m, 4 * c : 4 * c + 4] / theirs
            boxes, total = boxes + q[m, c] * (one - other).abs().sum(), total + q[m, c]
    assert losses["loss_distill_box_cls"].item() == pytest.approx(classes.item(), rel=1e-4)
    assert losses["loss_distill_box_reg"].item() == pytest.approx((boxes / total).item(), rel=1e-3)

    instances = seen["mask_head"][0][1]
    at = [x.proposal_boxes for x in instances]
    masks = heads.mask_head.layers(heads.mask_pooler([maps[n] for n in heads.mask_in_features], at))
    kinds = [k for x in instances for k in x.gt_classes.tolist()]
    found = []
    for ours, theirs, k in zip(seen["predictor"][1], masks, kinds):
        p, q = ours[k].double().sigmoid(), theirs[k].double().sigmoid()
        found.append(-(q * p.log() + (1 - q) * (1 - p).log()).mean())
    assert len(set(kinds)) > 1
    expected = sum(found).item() / len(found)
    assert losses["loss_distill_mask"].item() == pytest.approx(expected, rel=1e-5)


def test_names_are_read_where_a_dataset_has_not_been_loaded_yet(new_datasets, tmp_path):
    path = tmp_path / "coco.json"
    kinds = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": kinds}))
    for name, file in (("not_loaded", path), ("not_there", tmp_path / "nothing.json")):
        register_coco_instances(name, {}, str(file), str(tmp_path))
    assert class_names(["never_registered", "not_loaded"]) == ["cat", "dog"]
    assert class_names(["not_there"]) == class_names([]) == []


def test_a_teacher_with_turned_classes_is_the_same_teacher(teacher_files):
    """Its weights of the classes in another order, and their names too."""
    expected, _ = step(build(teacher_files))
    model = build(teacher_files, theirs=CLASSES[::-1])
    heads = model.teacher.whole.roi_heads
    order = torch.arange(5, -1, -1)
    with torch.no_grad():
        for layer, places in (
            (heads.box_predictor.cls_score, torch.cat([order, torch.tensor([6])])),
            (heads.box_predictor.bbox_pred, torch.arange(24).view(6, 4)[order].flatten()),
            (heads.mask_head.predictor, order),
        ):
            for value in layer.parameters():
                value.copy_(value[places])
    losses, _ = step(model)
    for name in TERMS:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-4, atol=1e-6)


def test_from_a_lazy_config(teacher_files, shapes, tmp_path):
    cfg = lazy_config(tmp_path)
    distill(cfg, *teacher_files)
    cfg.model.heads = {"_target_": "skd.TeacherHeads", "names": ["BoxHead"]}
    cfg.model.teacher.heads = False
    with pytest.raises(ValueError, match="built without its heads"):
        describe(cfg).build_model()
    del cfg.model.teacher["heads"]
    (head,) = describe(cfg).build_model()._skd.heads.kinds  # both were trained on tiny_train
    assert head.classes == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    cfg.model.heads.names = ["DenseHead"]
    with pytest.raises(ValueError, match=r"^model.heads.names has 'DenseHead', and these heads ca"):
        describe(cfg).build_model()


def test_on_images_without_labels_the_features_alone_are_learned_from(teacher_files):
    model = build(teacher_files, balance=True)
    other = {"image": batch(1, seed=7)[0]["image"], "height": 96, "width": 128, "unlabelled": []}
    losses, _ = step(model, [*batch(), other])
    expected, _ = step(build(teacher_files, balance=True))
    assert losses["loss_distill_unlabelled"] > 0
    assert all(torch.equal(losses[k], v) for k, v in expected.items())


def test_they_join_the_balance(teacher_files):
    model = build(teacher_files, balance=True)
    model.pop_metrics()
    step(model)
    metrics = model.pop_metrics()
    shares = {k: v for k, v in metrics.items() if k.startswith("distill/share_")}
    assert {f"distill/share_{t[len('loss_distill_'):]}" for t in TERMS} <= set(shares)
    weights = {t: metrics[f"distill/weight_{t[len('loss_distill_'):]}"].item() for t in TERMS}
    # a new mask head's gradient is so small that its share would ask for more
    assert max(weights.values()) == weights["loss_distill_mask"] == 3
    assert 2 < sum(shares.values()) < 3 - 0.01
    assert shares["distill/share_structured_am"] == pytest.approx(3 / 8, rel=0.01)
    assert "distill/rpn_cls_p3" in metrics


@pytest.mark.parametrize("levels", [["p6"], ["p5"]])
def test_levels_of_the_features_leave_the_heads_their_weights(teacher_files, levels):
    """They are learned from at all levels, so that is where they are measured."""

    def weights(model):
        model.pop_metrics()
        step(model)
        return {t: model.distiller.balance.weights()[t[len("loss_distill_") :]] for t in TERMS}

    some = weights(build(teacher_files, balance=True, MODEL__DISTILLER__LEVELS=levels))
    every = weights(build(teacher_files, balance=True))
    for term in TERMS:
        torch.testing.assert_close(some[term], every[term])


def test_another_teacher_is_compared_anew(teacher_files):
    model = build(teacher_files, student=tiny_config("faster_rcnn"), names=["BoxHead"])
    config, weights = teacher_files
    other = build_teacher(config, weights=weights, heads=True)
    other.classes = CLASSES[::-1]
    model._skd.heads.settings = dataclasses.replace(model._skd.heads.settings, teacher_classes=())
    model.teacher = other
    assert model._skd.heads.kinds[0].classes.teacher == [5, 4, 3, 2, 1, 0]
    with pytest.raises(ValueError, match="The teacher was built without its heads"):
        model.teacher = build_teacher(config, weights=weights)
    assert model.teacher is other


def test_one_object_serves_several_students(teacher_files):
    heads = TeacherHeads(names=["BoxHead"], student_classes=CLASSES, teacher_classes=CLASSES)
    config, weights = teacher_files
    teacher = build_teacher(config, weights=weights, heads=True)
    models = []
    for theirs in (CLASSES, CLASSES[::-1]):
        heads.settings = dataclasses.replace(heads.settings, student_classes=theirs)
        model = DistillRCNN(
            student=build_model(tiny_config()), teacher=teacher, heads=heads, input_format="BGR",
            distiller=StructuredDistiller(),
        )  # fmt: skip
        models.append(model)
    orders = [model._skd.heads.kinds[0].classes.teacher for model in models]
    assert orders == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]] and heads.kinds == []


def test_a_frozen_backbone_leaves_nothing_to_balance_by(teacher_files):
    frozen = tiny_config(MODEL__BACKBONE__FREEZE_AT=5)
    model = build(teacher_files, student=frozen, balance=True)
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen, .* by which MODEL.DISTILLER.BALANCE.ENABLED w"):
        step(model)
    model = build(teacher_files, student=frozen)
    model.backbone.requires_grad_(False)
    losses, grads = step(model)
    assert all(losses[k] > 0 for k in TERMS) and any("rpn_head" in k for k in grads)


def test_heads_beside_features_of_another_module(teacher_files):
    names = ["RPNHead", "BoxHead"]
    model = build(teacher_files, names, balance=True, MODEL__STUDENT__FEATURES="backbone.bottom_up")
    losses, _ = step(model)
    assert list(model._skd.heads.kinds[0].pairs) == ["p2", "p3", "p4", "p5", "p6"]
    assert losses["loss_distill_rpn_cls"] > 0 and losses["loss_distill_box_cls"] > 0


def test_classes_are_those_that_the_teachers_run_has_written(
    shapes, new_datasets, tmp_path, monkeypatch
):
    """Whatever dataset has that name here."""
    folder = tmp_path / "teacher"
    cfg = tiny_config(SOLVER__MAX_ITER=1, DATASETS__TRAIN=("of_teacher",), DATASETS__TEST=())
    names = dict.fromkeys(["of_teacher", "same_name_here"])
    for name in names:
        content = json.loads(Path(MetadataCatalog.get("tiny_train").json_file).read_text())
        order = 1 if name == "of_teacher" else -1
        for category, other in zip(content["categories"], CLASSES[::order]):
            category["name"] = other
        names[name] = tmp_path / f"{name}.json"
        names[name].write_text(json.dumps(content))
    root = MetadataCatalog.get("tiny_train").image_root
    register_coco_instances("of_teacher", {}, str(names["of_teacher"]), root)
    train_until(cfg, folder)
    DatasetCatalog.remove("of_teacher"), MetadataCatalog.remove("of_teacher")
    register_coco_instances("of_teacher", {}, str(names["same_name_here"]), root)
    cfg.OUTPUT_DIR = str(folder)
    (folder / "config.yaml").write_text(student_config(cfg).dump())
    weights = str(folder / "model_final.pth")
    with open(folder / "runs.jsonl", "a") as f:  # as of an evaluation in the folder, on other data
        other = {"datasets": {"of_teacher": {"classes": CLASSES[::-1]}}}
        f.write(json.dumps({"config": {"DATASETS.TRAIN": ["of_teacher"]}, **other}) + "\n")
    monkeypatch.chdir(folder)
    assert classes_of_run(weights) == classes_of_run("model_final.pth") == CLASSES
    assert classes_of_run("") == classes_of_run("/nowhere/model_final.pth") == []
    teacher = build_teacher(str(folder / "config.yaml"), weights=weights, heads=True)
    assert teacher.classes == CLASSES
    (folder / "runs.jsonl").unlink()
    teacher = build_teacher(str(folder / "config.yaml"), weights=weights, heads=True)
    assert teacher.classes == CLASSES[::-1]


def test_an_image_without_objects(teacher_files):
    inputs = batch()
    for x in inputs:
        x["instances"] = x["instances"][:0]
    losses, _ = step(build(teacher_files), inputs)
    assert losses["loss_distill_mask"] == 0 and losses["loss_distill_box_cls"] > 0


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS": [[1.0]]}, "'RPNHead'.* anchors at 'p2' are ot"),
        ({"MODEL__MASK_ON": False}, "'MaskHead'.* the student, .*, has no 'roi_heads'"),
        (
            {"MODEL__ROI_HEADS__NAME": "CascadeROIHeads"},
            "'BoxHead'.*CascadeROIHeads has several st",
        ),
        (
            {"MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True},
            "CLS_AGNOSTIC.* is True in the stud",
        ),
        ({"MODEL__ROI_MASK_HEAD__POOLER_RESOLUTION": 7}, "masks' side in pixels is 14 .* and 28"),
        ({"MODEL__ROI_BOX_HEAD__BBOX_REG_WEIGHTS": [1.0] * 5}, "'BoxHead'.* student's boxes are r"),
    ],
)
def test_heads_that_do_not_fit_are_refused_with_the_reason(teacher_files, changes, message):
    cfg = tiny_config(MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG=False)
    if "MODEL__ROI_HEADS__NAME" in changes:
        changes = {**changes, "MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True}
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    with pytest.raises(ValueError, match=message):
        build(teacher_files, student=cfg)


def test_what_the_user_forgot_is_said(teacher_files, tmp_path):
    with pytest.raises(
        ValueError, match=r".*HEADS.NAMES is \['Nose'\]; .* BoxHead, CrossHead, .*RPNHead"
    ):
        build(teacher_files, names=["Nose"])
    with pytest.raises(
        ValueError, match="teacher's classes are not known: give .*HEADS.TEACHER_CL"
    ):
        of_another_set = tiny_config(DATASETS__TRAIN=("never_registered",))
        build(save_detector(of_another_set, tmp_path), theirs=[])
    config, weights = teacher_files
    with pytest.raises(ValueError, match="built without its heads"):
        DistillRCNN(
            student=build_model(tiny_config()), teacher=build_teacher(config, weights=weights),
            distiller=StructuredDistiller(), heads=TeacherHeads(names=["RPNHead"]),
        )  # fmt: skip


def test_a_cascade_has_one_mask_head(teacher_files, tmp_path):
    agnostic = {"MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True}
    cascade = tiny_config(MODEL__ROI_HEADS__NAME="CascadeROIHeads", **agnostic)
    for files, student in ((teacher_files, cascade), (save_detector(cascade, tmp_path), None)):
        losses, _ = step(build(files, names=["RPNHead", "MaskHead"], student=student))
        assert losses["loss_distill_mask"] > 0 and losses["loss_distill_rpn_cls"] > 0


def test_a_retinanet_has_no_rpn(teacher_files):
    with pytest.raises(ValueError, match="'RPNHead'.* the student, a .*, has no 'proposal_gen"):
        build(teacher_files, names=["RPNHead"], student=tiny_config("retinanet"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(teacher_files, dtype, device):
    model = build(teacher_files, MODEL__TEACHER__PRECISION="bf16").to(device)
    with EventStorage(0), torch.autocast(device, dtype=dtype):
        losses = model(batch())
    assert all(losses[k].dtype == torch.float32 and losses[k].isfinite() for k in TERMS)
    sum(losses.values()).backward()


def test_a_run_in_parts_resumes_bit_by_bit(teacher_files, shapes, tmp_path):
    cfg = distilling(
        tiny_config(SOLVER__MAX_ITER=3, SOLVER__CHECKPOINT_PERIOD=2, SEED=4), teacher_files,
        balance=True, MODEL__DISTILLER__HEADS__NAMES=ALL, SOLVER__ACCUMULATE=2,
        MODEL__DISTILLER__HEADS__STUDENT_CLASSES=CLASSES,
        MODEL__DISTILLER__HEADS__TEACHER_CLASSES=CLASSES,
    )  # fmt: skip
    cfg.DATASETS.TEST = ()
    assert "distiller.balance.norm_mask" in check_resume(cfg, tmp_path, until=2)


def worker(teacher_files, out):
    torch.set_num_threads(1)
    model = build(teacher_files, balance=True, MODEL__RESNETS__NORM="FrozenBN", MODEL__FPN__NORM="")
    model = wrap_data_parallel(model, broadcast_buffers=False)
    assert not model.find_unused_parameters
    inputs = batch(4)[2 * comm.get_rank() :][:2]
    for iteration in range(2):
        losses, grads = step(model, inputs, iteration)
    torch.save((losses, grads), f"{out}/{comm.get_rank()}")
    leave_together()


@pytest.mark.slow
def test_two_processes_agree(teacher_files, tmp_path):
    launch(worker, 2, dist_url="auto", args=(teacher_files, str(tmp_path)))
    (first, grads), (second, others) = (torch.load(tmp_path / str(i)) for i in range(2))
    assert all(first[k] != second[k] for k in TERMS)
    assert all(torch.equal(grads[k], v) for k, v in others.items())
