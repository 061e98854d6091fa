"""DistillRCNN: what it adds to the student, and what it leaves alone."""

import copy
import pickle

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage

from skd import Distiller, student_config
from skd.distillers.similarity import MapSimilarity, linear_cka
from skd.modeling.state import pairs_of, watch_maps
from tests.helpers import TERMS, batch, distilling, save_detector, tiny_config


@pytest.fixture
def cfg(teacher_files):
    return distilling(tiny_config(), teacher_files)


def losses_of(model, inputs, iteration=0):
    with EventStorage(iteration) as storage:
        torch.manual_seed(3)  # for the sampling of proposals
        return model(inputs), storage


def test_the_student_s_losses_come_with_the_distiller_s(cfg):
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.manual_seed(0)
    student = build_model(student_config(cfg))
    inputs = batch()
    losses, storage = losses_of(model, inputs)
    baseline, _ = losses_of(student, inputs)
    assert list(losses) == list(baseline) + TERMS
    assert all(torch.equal(losses[k], v) for k, v in baseline.items())
    for term in TERMS:
        levels = [
            storage.latest()[f"distill/{term[len('loss_distill_'):]}_{level}"][0]
            for level in ("p2", "p3", "p4", "p5", "p6")
        ]
        assert losses[term].item() == pytest.approx(sum(levels), rel=1e-6)
        assert losses[term].shape == ()


def test_names_are_the_student_s_own(cfg):
    model, plain = build_model(cfg), build_model(student_config(cfg))
    for names in ("named_parameters", "named_buffers", "state_dict", "named_modules"):
        ours, expected = (list(dict(getattr(m, names)())) for m in (model, plain))
        assert [n for n in ours if not n.startswith("distiller")] == expected, names
        assert any(n.startswith("distiller.") for n in ours), names


def test_teacher_is_outside_of_everything(cfg):
    model = build_model(cfg)
    teacher = {id(t) for t in (*model.teacher.parameters(), *model.teacher.buffers())}
    assert teacher
    assert not teacher & {id(t) for t in (*model.parameters(), *model.buffers())}
    optimizer = build_optimizer(cfg, model)
    assert not teacher & {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert not teacher & {id(t) for t in model.state_dict(keep_vars=True).values()}
    model.train()
    assert not any(m.training for m in model.teacher.modules())
    assert all(m.training for m in model.modules())
    model.eval()
    assert not any(m.training for m in model.modules())


def test_the_optimizer_s_groups_are_the_baseline_s_and_the_distiller_s(cfg):
    cfg.SOLVER.BIAS_LR_FACTOR, cfg.SOLVER.WEIGHT_DECAY_BIAS = 2.0, 0.5
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.25
    ours, expected = (rates(cfg, build_model(c)) for c in (cfg, student_config(cfg)))
    of_distiller = {name for name in ours if name.startswith("distiller.")}
    assert of_distiller and ours.keys() - of_distiller == expected.keys()
    assert {name: ours[name] for name in expected} == expected
    assert {rate for rate, _ in expected.values()} == {0.01, 0.02}
    assert {decay for _, decay in expected.values()} == {1e-4, 0.25, 0.5}


def rates(cfg, model):
    """Learning rate and weight decay by parameter, as Detectron2's optimizer has them."""
    groups = build_optimizer(cfg, model).param_groups
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups)
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[key]: value for key, value in found.items()}


def test_everything_moves_together(cfg):
    model = build_model(cfg)
    for dtype in (torch.float64, torch.float32):
        model.to(dtype)
        tensors = [*model.teacher.parameters(), *model.teacher.buffers(), model.pixel_mean]
        assert {t.dtype for t in tensors if t.is_floating_point()} == {dtype}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_a_whole_of_its_own(cfg, duplicate):
    model = build_model(cfg)
    twin = duplicate(model)
    assert type(twin) is type(model) and twin.backbone is not model.backbone
    assert pairs_of(twin) == pairs_of(model)
    assert (twin.teacher is model.teacher) == (duplicate is copy.deepcopy)  # which it shares
    expected, losses = (losses_of(m, batch())[0] for m in (model, twin))
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[k], v) for k, v in expected.items())
    losses["loss_distill_structured_nl"].backward()
    assert all(p.grad is None for p in model.parameters())


def test_eval_is_the_student(cfg, monkeypatch):
    model = build_model(cfg).eval()
    student = build_model(student_config(cfg)).eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("distiller.")}
    student.load_state_dict(state, strict=True)
    monkeypatch.setattr(model.teacher, "start", None)
    inputs = batch()
    with torch.no_grad():
        ours, expected = model(inputs), student(inputs)
    for a, b in zip(ours, expected):
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        assert torch.equal(a["instances"].scores, b["instances"].scores)


PAIRS = [
    ("mask_rcnn", "mask_rcnn", ["p2", "p3", "p4", "p5", "p6"]),
    ("faster_rcnn", "mask_rcnn", ["p2", "p3", "p4", "p5", "p6"]),
    ("retinanet", "retinanet", ["p3", "p4", "p5", "p6", "p7"]),
    ("retinanet", "mask_rcnn", ["p3", "p4", "p5", "p6"]),
    ("faster_rcnn", "retinanet", ["p3", "p4", "p5", "p6"]),
]


@pytest.mark.parametrize("student,teacher,levels", PAIRS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_pairs_train_every_parameter_and_come_closer(student, teacher, levels, reduction, tmp_path):
    files = save_detector(tiny_config(teacher, width=6, fpn=24), tmp_path)
    cfg = distilling(tiny_config(student), files, reduction)
    torch.manual_seed(0)
    model = build_model(cfg)
    assert list(pairs_of(model)) == levels
    inputs = batch(height=100, width=120)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    history = []
    for i in range(15):
        losses, _ = losses_of(model, inputs, i)
        optimizer.zero_grad()
        if i == 0:  # data-parallel training does not look for unused parameters
            sum(losses.values()).backward(retain_graph=True)
            assert [n for n, p in model.named_parameters() if p.grad is None] == []
            optimizer.zero_grad()
        total = sum(losses[t] for t in TERMS)
        history.append(total.item())
        total.backward()
        optimizer.step()
    assert history[-1] < 0.9 * history[0]


def test_color_orders_may_differ(teacher_files):
    """The same picture, told to the student as BGR and as RGB, is the same to the teacher."""
    inputs = batch()
    seen = []
    for order in ("BGR", "RGB"):
        model = build_model(distilling(tiny_config(), teacher_files, INPUT__FORMAT=order))
        model.distiller = Recorder()
        given = [
            {**x, "image": x["image"].flip(0) if order == "RGB" else x["image"]} for x in inputs
        ]
        losses_of(model, given)
        seen.append(model.distiller.teacher["p3"])
    assert torch.equal(*seen)


class Recorder(Distiller):
    def forward(self, student, teacher, boxes):
        self.student, self.teacher = student, teacher
        return {"loss_distill_x": {k: (v * self.scale).sum() for k, v in student.items()}}

    scale = 1.0


def test_maps_padded_differently_are_cropped(teacher_files):
    model = build_model(distilling(tiny_config(), teacher_files))
    model.teacher.backbone._square_pad = 128
    model.distiller = Recorder()
    losses_of(model, batch(height=96, width=128))
    assert model.distiller.student["p3"].shape[-2:] == (12, 16)
    assert model.distiller.teacher["p3"].shape[-2:] == (12, 16)


def test_metrics_name_the_level_of_a_loss_that_is_not_finite(cfg):
    """Metrics name its level for the step, which stops at it before the optimizer does."""
    model = build_model(cfg)
    model.pop_metrics()
    with torch.no_grad():
        model.distiller.levels["p4"].feature_adapter.bias.fill_(float("nan"))
    losses_of(model, batch())
    metrics = model.pop_metrics()
    bad = [name for name, value in metrics.items() if not value.isfinite()]
    assert bad == ["distill/structured_am_p4"]
    assert model.pop_metrics() == {}


def test_metrics_are_for_who_pops_them_or_for_the_storage_now_and_then(cfg):
    model = build_model(cfg)
    _, storage = losses_of(model, batch(), iteration=20)
    assert storage.latest()["detector_loss"][0] > 0
    _, storage = losses_of(model, batch(), iteration=21)
    assert "detector_loss" not in storage.latest()
    model.pop_metrics()
    _, storage = losses_of(model, batch(), iteration=40)
    assert "detector_loss" not in storage.latest() and "detector_loss" in model.pop_metrics()


def test_metrics_say_how_alike_the_maps_are(cfg):
    model, seen = build_model(cfg), []
    model.pop_metrics()
    watch_maps(model, seen.append)
    losses_of(model, batch())
    metrics, (aligned,) = model.pop_metrics(), seen
    names = [name for name in metrics if "cka" in name]
    assert names == [f"distill/cka_{level}" for level in ("p2", "p3", "p4", "p5")]  # p6 is 2 x 2
    for name in names:
        pair = (maps[name[-2:]].double() for maps in (aligned.student, aligned.teacher))
        assert metrics[name].item() == pytest.approx(linear_cka(*pair).item(), rel=1e-4)
        assert 0 < metrics[name] < 1


@pytest.mark.parametrize("balance,measured", [(True, [0, 1, 5, 20]), (False, [0, 5, 20, 50])])
def test_alike_is_measured_now_and_then_and_not_after_the_teacher(
    teacher_files, monkeypatch, balance, measured
):
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=90), teacher_files, balance=balance)
    settings = cfg.MODEL.DISTILLER.BALANCE
    settings.UNTIL, settings.PERIOD, settings.BURN_IN = 0.5, 5, 2
    model, calls = build_model(cfg), []
    model.pop_metrics()
    measure = MapSimilarity.measure
    monkeypatch.setattr(
        MapSimilarity, "measure", lambda *args: calls.append(iteration) or measure(*args)
    )
    for iteration in (0, 1, 2, 5, 6, 20, 21, 50):
        losses_of(model, batch(), iteration=iteration)
        shown = "distill/cka_p2" in model.pop_metrics()
        assert shown == (iteration < 45 or not balance)  # as it was last
    assert calls == measured


def test_metrics_say_how_the_terms_are_weighed(cfg):
    cfg.MODEL.DISTILLER.BALANCE.ENABLED = True
    model = build_model(cfg)
    model.pop_metrics()
    losses, _ = losses_of(model, batch())
    metrics = model.pop_metrics()
    for term in ("structured_am", "structured_at", "structured_nl"):
        # a third of the default share
        assert metrics[f"distill/share_{term}"].item() == pytest.approx(1, rel=1e-4)
        assert abs(metrics[f"distill/cosine_{term}"].item()) < 1
        assert metrics[f"distill/weight_{term}"] > 0 and metrics[f"distill/norm_{term}"] > 0
    own = sum(v.item() for k, v in losses.items() if not k.startswith("loss_distill_"))
    assert metrics["detector_loss"].item() == pytest.approx(own, rel=1e-5)


@META_ARCH_REGISTRY.register()
class MeanOfP2(GeneralizedRCNN):
    """Whose only loss needs no event storage, and no images."""

    def forward(self, inputs):
        return {"loss": self.backbone(inputs[0]["pixels"])["p2"].sum()}


def test_needs_no_event_storage(teacher_files):
    model = build_model(
        distilling(tiny_config(), teacher_files, MODEL__STUDENT__META_ARCHITECTURE="MeanOfP2")
    )
    inputs = batch()
    inputs[0]["pixels"] = torch.randn(2, 3, 96, 128)
    assert set(model(inputs)) == {"loss", *TERMS}
    model.pop_metrics()
    inputs[0]["pixels"].fill_(float("inf"))
    model(inputs)
    assert model.pop_metrics()["detector_loss"].isnan()


def test_levels_and_modules_can_be_chosen(teacher_files):
    chosen = distilling(tiny_config(), teacher_files, MODEL__DISTILLER__LEVELS=["p3", "p5"])
    assert list(pairs_of(build_model(chosen))) == ["p3", "p5"]
    body = distilling(
        tiny_config(), teacher_files, MODEL__STUDENT__FEATURES="backbone.bottom_up",
        MODEL__TEACHER__FEATURES="backbone.bottom_up",
    )  # fmt: skip
    model = build_model(body)
    assert list(pairs_of(model)) == ["res2", "res3", "res4", "res5"]
    assert set(TERMS) < set(losses_of(model, batch())[0])


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("MODEL.DISTILLER.NAME", "Structured", "Unknown method 'Structured'.*StructuredDistiller"),
        ("MODEL.DISTILLER.LEVELS", ["p7"], "'p7'.*'p2', 'p3', 'p4', 'p5', 'p6'"),
        ("MODEL.DISTILLER.STRUCTURED.PRESET", "best", "PRESET is 'best'.*'two_stage'"),
        ("MODEL.STUDENT.META_ARCHITECTURE", "MaskRCNN", "'MaskRCNN'; it must be one of.*RetinaNet"),
        ("MODEL.STUDENT.META_ARCHITECTURE", "DistillRCNN", "it must be one of"),
        ("MODEL.STUDENT.FEATURES", "neck", "STUDENT.FEATURES is 'neck'.*backbone.bottom_up"),
        ("MODEL.TEACHER.FEATURES", "neck", "TEACHER.FEATURES is 'neck'.*backbone.bottom_up"),
        ("MODEL.TEACHER.CONFIG_FILE", "", "CONFIG_FILE is empty"),
    ],
)
def test_bad_configs_are_refused_when_the_model_is_built(cfg, key, value, message):
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_without_gradients_it_is_the_student_and_nothing_is_measured(teacher_files, monkeypatch):
    """Precise batch norm and losses on a validation set call it so, at any iteration."""
    model = build_model(distilling(tiny_config(), teacher_files, balance=True))
    with EventStorage(30):
        model(batch())
    before = {name: value.clone() for name, value in model.distiller.state_dict().items()}
    monkeypatch.setattr(model.teacher, "start", None)
    unlabelled = {"image": batch()[0]["image"], "height": 96, "width": 128, "unlabelled": True}
    with EventStorage(), torch.no_grad():
        losses = model([*batch(), unlabelled])
    assert "loss_cls" in losses and not any(name.startswith("loss_distill") for name in losses)
    assert all(torch.equal(value, before[k]) for k, value in model.distiller.state_dict().items())
