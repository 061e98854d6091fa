"""RetinaNet and FCOS: the teacher's class and box maps, and CrossKD."""

import copy

import pytest
import torch
from detectron2.engine import launch
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn import giou_loss

from skd import (
    HEAD_REGISTRY,
    DistillRCNN,
    FrozenTeacher,
    GradientBalance,
    StructuredDistiller,
    TeacherHeads,
)
from skd.engine import wrap_data_parallel
from skd.modeling.heads import HeadPair
from skd.modeling.state import pairs_of
from skd.runtime.checkpoint import CheckpointError
from tests.helpers import (
    DEVICES,
    batch,
    check_resume,
    distilling,
    save_detector,
    step,
    tiny_config,
    train_until,
)
from tests.processes import leave_together

CLASSES = ["a", "b", "c", "d", "e", "f"]


def retinanet(seed, **changes):
    torch.manual_seed(seed)
    changes = {"MODEL__RETINANET__NUM_CONVS": 2, "MODEL__FPN__NORM": "", **changes}
    return build_model(tiny_config("retinanet", MODEL__RESNETS__NORM="FrozenBN", **changes))


def fcos(seed):
    torch.manual_seed(seed)
    cfg = tiny_config("retinanet", MODEL__RESNETS__NORM="FrozenBN", MODEL__FPN__NORM="")
    backbone = build_backbone(cfg)
    shapes = list(backbone.output_shape().values())
    head = FCOSHead(input_shape=shapes, num_classes=6, conv_dims=[16, 16])
    torch.nn.init.constant_(head.bbox_pred.bias, 2.0)  # boxes of some pixels, as trained ones are
    return FCOS(
        backbone=backbone, head=head, num_classes=6, pixel_mean=[120.0] * 3, pixel_std=[60.0] * 3
    )


def pair(student, teacher, *names, theirs=CLASSES, balance=None, **more):
    teacher = FrozenTeacher(model=teacher, weights=None, input_format="BGR", heads=True)
    heads = TeacherHeads(names=names, student_classes=CLASSES, teacher_classes=theirs)
    return DistillRCNN(
        student=student, teacher=teacher, distiller=StructuredDistiller(), balance=balance,
        input_format="BGR", heads=heads, **more,
    )  # fmt: skip


def terms(losses, *kinds):
    return [losses[f"loss_distill_{kind}_{term}"] for kind in kinds for term in ("cls", "reg")]


@pytest.mark.parametrize("build", [retinanet, fcos])
def test_they_learn_from_another_and_agree_with_themselves(build):
    losses, _ = step(pair(build(0), build(1), "DenseHead", "CrossHead"))
    assert all(x.isfinite() and x > 0 for x in terms(losses, "dense", "cross"))
    student = build(0)
    losses, _ = step(pair(student, copy.deepcopy(student), "DenseHead", "CrossHead"))
    assert all(x.abs() < 1e-4 for x in terms(losses, "dense", "cross"))


@torch.no_grad()
def predictions(detector):
    """Logits (N, R, 6) and boxes (N, R, 4) by level, as Detectron2's own inference has them."""
    maps = maps_of(detector)
    yield from decoded(detector, *detector.head(maps)[:2], maps)


def maps_of(detector):
    maps = detector.backbone(detector.preprocess_image(batch()).tensor)
    return [maps[name] for name in detector.head_in_features]


def decoded(detector, logits, deltas, maps):
    for x, d, anchors in zip(logits, deltas, detector.anchor_generator(maps)):
        decode = detector.box2box_transform.apply_deltas
        boxes = [decode(one, anchors.tensor) for one in permute_to_N_HWA_K(d, 4)]
        yield permute_to_N_HWA_K(x, 6), torch.stack(boxes)


def by_equation(students, teachers):
    """Sums over all levels of QFL and of b (1 - GIoU), b the teacher's confidence, by B."""
    classes = boxes = total = 0
    for (x, s_boxes), (y, t_boxes) in zip(students, teachers):
        p, q = x.sigmoid(), y.sigmoid()
        classes += ((q - p).abs() * -(q * p.log() + (1 - q) * (1 - p).log())).sum()
        confidence = q.amax(2)
        boxes += (confidence * giou_loss(s_boxes, t_boxes)).sum()
        total += confidence.sum()
    return [float(classes / total), float(boxes / total)]


@pytest.mark.parametrize("build", [retinanet, fcos])
def test_the_terms_are_those_of_the_equations(build):
    student, teacher = build(0), build(1)
    expected = by_equation(predictions(student), predictions(teacher))
    losses, _ = step(pair(student, teacher, "DenseHead"))
    assert [x.item() for x in terms(losses, "dense")] == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def crossed(student, teacher):
    """Predictions of the teacher's head from the student's features, channel by channel."""
    found = []
    for subnet, last in (("cls_subnet", "cls_score"), ("bbox_subnet", "bbox_pred")):
        ours, theirs = student.head.get_submodule(subnet), teacher.head.get_submodule(subnet)
        outputs = []
        for x, y in zip(maps_of(student), maps_of(teacher)):
            s, t = ours[0](x).double(), theirs[0](y).double()  # in front of the activation
            for c in range(s.shape[1]):
                unit = (s[:, c] - s[:, c].mean()) / (s[:, c].std(correction=0) + 1e-6)
                s[:, c] = unit * t[:, c].std(correction=0) + t[:, c].mean()
            outputs.append(teacher.head.get_submodule(last)(theirs[1:](s.float())))
        found.append(outputs)
    return decoded(teacher, *found, maps_of(teacher))


@pytest.mark.parametrize("build", [retinanet, fcos])
def test_cross_predictions_are_those_of_the_authors(build):
    student, teacher = build(0), build(1)
    expected = by_equation(crossed(student, teacher), predictions(teacher))
    losses, _ = step(pair(student, teacher, "CrossHead"))
    assert [x.item() for x in terms(losses, "cross")] == pytest.approx(expected, rel=1e-3)


def test_classes_in_another_order_are_the_same_classes():
    student = retinanet(0)
    score = student.head.cls_score
    anchors = len(score.bias) // 6
    torch.nn.init.normal_(score.bias)
    teacher, other = copy.deepcopy(student), copy.deepcopy(student)
    with torch.no_grad():
        for name, value in score.named_parameters():
            turned = value.view(anchors, 6, *value.shape[1:]).flip(1).flatten(0, 1)
            teacher.head.cls_score.get_parameter(name).copy_(turned)
    agreeing, _ = step(pair(student, copy.deepcopy(teacher), "DenseHead", theirs=CLASSES[::-1]))
    assert all(x.abs() < 1e-4 for x in terms(agreeing, "dense"))
    straight, _ = step(pair(other, teacher, "DenseHead"))
    assert terms(straight, "dense")[0] > 0.1


def test_cross_predictions_leave_the_students_last_layers_to_the_labels():
    losses, grads = step(pair(retinanet(0), retinanet(1), "CrossHead"))
    _, expected = step(pair(retinanet(0), retinanet(1), "DenseHead"))
    model = pair(retinanet(0), retinanet(1), "CrossHead")
    model._skd.heads = None
    _, baseline = step(model)
    last = [k for k in grads if "cls_score" in k or "bbox_pred" in k]
    assert last and all(torch.equal(grads[k], baseline[k]) for k in last)
    assert all(not torch.equal(expected[k], baseline[k]) for k in last)
    assert not torch.equal(grads["head.cls_subnet.0.weight"], baseline["head.cls_subnet.0.weight"])
    assert grads.keys() == baseline.keys()


def test_heads_of_another_depth_cross_before_the_last_layer_that_both_have():
    deeper = retinanet(1, MODEL__RETINANET__NUM_CONVS=3)
    losses, _ = step(pair(retinanet(0), deeper, "CrossHead"))
    assert all(x.isfinite() and x > 0 for x in terms(losses, "cross"))
    shallow = retinanet(0, MODEL__RETINANET__NUM_CONVS=1)
    losses, _ = step(pair(shallow, retinanet(1), "CrossHead"))
    assert all(x.isfinite() and x > 0 for x in terms(losses, "cross"))


class OwnReLU(torch.nn.ReLU):
    pass


@pytest.mark.parametrize("kind", [torch.nn.ReLU, torch.nn.SiLU, torch.nn.LeakyReLU, OwnReLU])
def test_an_activation_in_place_leaves_the_features_in_front_of_it(kind):
    """As heads from elsewhere have it; the features would be those behind it."""

    def build(seed, inplace):
        detector = retinanet(seed)
        for subnet in (detector.head.cls_subnet, detector.head.bbox_subnet):
            for i, module in enumerate(subnet):
                if isinstance(module, torch.nn.ReLU):
                    subnet[i] = kind(inplace=inplace)
        return detector

    cuts = pair(build(0, True), build(1, True), "CrossHead")._skd.heads.kinds[0].cuts
    assert cuts == pair(retinanet(0), retinanet(1), "CrossHead")._skd.heads.kinds[0].cuts
    found = [
        step(pair(build(0, inplace), build(1, inplace), "CrossHead"))[0]
        for inplace in (False, True)
    ]
    assert all(torch.equal(*both) for both in zip(*(terms(x, "cross") for x in found)))


def test_what_does_not_fit_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="'CrossHead'.* channels of the features that cross over"):
        pair(retinanet(0), retinanet(1, MODEL__FPN__OUT_CHANNELS=24), "CrossHead")
    pair(retinanet(0), retinanet(1, MODEL__FPN__OUT_CHANNELS=24), "DenseHead")
    shorter, other = retinanet(1), retinanet(1)
    shorter.head.bbox_subnet = shorter.head.bbox_subnet[:2]  # a convolution and its activation
    losses, _ = step(pair(retinanet(0), shorter, "CrossHead"))
    assert all(x.isfinite() and x > 0 for x in terms(losses, "cross"))
    other.head.bbox_subnet[0] = torch.nn.Conv2d(16, 8, 3, padding=1)
    other.head.bbox_subnet[2] = torch.nn.Conv2d(8, 16, 3, padding=1)
    with pytest.raises(ValueError, match="cross over in 'bbox_subnet' is 16 .* and 8"):
        pair(retinanet(0), other, "CrossHead")
    with pytest.raises(ValueError, match="'DenseHead'.* box transform is Box2BoxTransform in"):
        pair(retinanet(0), fcos(1), "DenseHead")
    with pytest.raises(ValueError, match="'DenseHead'.* has no 'head'"):
        pair(build_model(tiny_config()), retinanet(1), "DenseHead")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype, device):
    model = pair(retinanet(0), retinanet(1), "DenseHead", "CrossHead").to(device)
    with EventStorage(), torch.autocast(device, dtype=dtype):
        losses = model(batch())
    assert all(x.isfinite() and x.dtype == torch.float32 for x in terms(losses, "dense", "cross"))
    sum(losses.values()).backward()


def dense_config(teacher_files, **changes):
    cfg = tiny_config("retinanet", MODEL__RETINANET__NUM_CONVS=2, SOLVER__MAX_ITER=3, SEED=4)
    cfg = distilling(
        cfg, teacher_files, balance=True, MODEL__DISTILLER__HEADS__NAMES=["DenseHead", "CrossHead"],
        MODEL__DISTILLER__HEADS__STUDENT_CLASSES=CLASSES,
        MODEL__DISTILLER__HEADS__TEACHER_CLASSES=CLASSES, **changes,
    )  # fmt: skip
    cfg.DATASETS.TEST = ()
    return cfg


@pytest.fixture(scope="module")
def dense_teacher(tmp_path_factory):
    cfg = tiny_config("retinanet", width=6, MODEL__RETINANET__NUM_CONVS=2)
    return save_detector(cfg, tmp_path_factory.mktemp("dense_teacher"))


def test_a_run_in_parts_resumes_bit_by_bit(dense_teacher, shapes, tmp_path):
    cfg = dense_config(dense_teacher, SOLVER__ACCUMULATE=2, SOLVER__CHECKPOINT_PERIOD=2)
    resumed = check_resume(cfg, tmp_path, until=2)
    assert {"distiller.balance.norm_dense_cls", "distiller.balance.norm_cross_reg"} <= set(resumed)


def worker(teacher, out):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    frozen = {"MODEL__RESNETS__NORM": "FrozenBN", "MODEL__FPN__NORM": ""}
    model = wrap_data_parallel(
        build_model(dense_config(teacher, **frozen)), broadcast_buffers=False
    )
    assert not model.find_unused_parameters
    inputs = batch(4)[2 * comm.get_rank() :][:2]
    for iteration in range(2):
        results = step(model, inputs, iteration)
    torch.save(results, f"{out}/{comm.get_rank()}")
    leave_together()


@pytest.mark.slow
def test_two_processes_agree(dense_teacher, tmp_path):
    launch(worker, 2, dist_url="auto", args=(dense_teacher, str(tmp_path)))
    (first, grads), (second, others) = (torch.load(tmp_path / str(i)) for i in range(2))
    assert all(a != b for a, b in zip(*(terms(x, "dense", "cross") for x in (first, second))))
    assert grads.keys() == others.keys() and any("cls_score" in k for k in grads)
    assert all(torch.equal(grads[k], v) for k, v in others.items())


@pytest.mark.parametrize("build", [retinanet, fcos])
def test_what_is_balanced_of_a_dense_head(build, caplog):
    def distilled(student, distiller=None, **settings):
        teacher = FrozenTeacher(model=build(1), weights=None, input_format="BGR")
        model = DistillRCNN(
            student=student, teacher=teacher, distiller=distiller or StructuredDistiller(),
            input_format="BGR", **settings,
        )  # fmt: skip
        return model.distiller.balance, list(pairs_of(model))

    with caplog.at_level("INFO"):
        balance, levels = distilled(build(0))
    assert (balance.share, levels) == (30.0, ["p3", "p4", "p5"])
    assert "Not distilled: 'p6' (stride 64), 'p7' (stride 128)" in caplog.text
    balance, levels = distilled(build(0), levels=["p3", "p6"])
    assert (balance.share, levels) == (30.0, ["p3", "p6"])
    balance, _ = distilled(build(0), balance=GradientBalance(share=2.0))
    assert balance.share == 2.0 and balance.default_share == 30.0
    everything = ["p3", "p4", "p5", "p6", "p7"]
    published = StructuredDistiller(preset="one_stage")
    assert distilled(build(0), published) == (None, everything)
    assert distilled(build(0), balance=None) == (None, everything)


def test_a_head_of_regions_is_balanced_as_before():
    teacher = FrozenTeacher(model=build_model(tiny_config()), weights=None, input_format="BGR")
    model = DistillRCNN(
        student=build_model(tiny_config()), teacher=teacher, distiller=StructuredDistiller()
    )
    assert model.distiller.balance.share == 3.0
    assert list(pairs_of(model)) == ["p2", "p3", "p4", "p5", "p6"]


def test_a_balance_of_another_model_stays_as_it_is():
    balance = GradientBalance()
    teacher = FrozenTeacher(model=retinanet(1), weights=None, input_format="BGR")
    parts = dict(teacher=teacher, balance=balance, input_format="BGR")
    DistillRCNN(student=build_model(tiny_config()), distiller=StructuredDistiller(), **parts)
    with pytest.raises(ValueError, match="another model's balance"):
        DistillRCNN(student=retinanet(0), distiller=StructuredDistiller(), **parts)
    assert balance.share == 3.0


def test_heads_are_compared_at_all_levels():
    model = pair(retinanet(0), retinanet(1), "DenseHead", "CrossHead", balance="auto")
    assert list(pairs_of(model)) == ["p3", "p4", "p5"]
    everything = ["p3", "p4", "p5", "p6", "p7"]
    assert [list(kind.pairs) for kind in model._skd.heads.kinds] == [everything] * 2
    named = pair(retinanet(0), retinanet(1), "CrossHead", levels=["p4"])  # of the features
    assert list(pairs_of(named)) == ["p4"]
    assert list(named._skd.heads.kinds[0].pairs) == everything
    losses, _ = step(model)
    assert all(x.isfinite() and x > 0 for x in terms(losses, "dense", "cross"))
    for levels in (["p3"], ["p7"]):  # measured where they are by default, and at what is named
        some = pair(retinanet(0), retinanet(1), "DenseHead", balance="auto", levels=levels)
        step(some)
        assert {"p3", "p4", "p5", *levels} == some._skd.measured_pairs.keys()
        assert 0.1 < some.distiller.balance.weights()["dense_cls"]


@pytest.mark.parametrize("terms,words", [
    ({}, "Toy returned no terms, so nothing is distilled"),
    ({"loss_distill_dense_cls": {"p3": torch.ones(())}}, "Toy returned loss_distill_dense_cls, a"),
])  # fmt: skip
def test_a_kind_of_head_from_elsewhere_has_terms_of_its_own(terms, words):
    class Toy(HeadPair):
        def check(self, student, teacher):
            pass

        def terms(self, student, teacher, calls, maps):
            return terms

    HEAD_REGISTRY._do_register("Toy", Toy)
    try:
        model = pair(retinanet(0), retinanet(1), "DenseHead", "Toy")
        with pytest.raises(ValueError, match=words):
            step(model)
    finally:
        del HEAD_REGISTRY._obj_map["Toy"]


def test_a_run_of_all_levels_does_not_go_on_with_three(shapes, tmp_path):
    """One that began when all were the default has layers that are not made any more."""
    files = save_detector(tiny_config("retinanet"), tmp_path / "teacher")
    cfg = distilling(tiny_config("retinanet"), files, balance=True)
    before = cfg.clone()
    before.MODEL.DISTILLER.BALANCE.SHARE = cfg.MODEL.DISTILLER.BALANCE.SHARE = 3.0
    before.MODEL.DISTILLER.LEVELS = ["p3", "p4", "p5", "p6", "p7"]
    train_until(before, tmp_path / "run", until=2)
    modules = "weights of distiller.levels.p6, distiller.levels.p7, and the model no such"
    with pytest.raises(CheckpointError, match=modules):
        train_until(cfg, tmp_path / "run", resume=True)
