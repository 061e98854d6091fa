"""Whatever a person, a project or PyTorch does to a student reaches the model that distils it."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer, detection_checkpoint
from detectron2.engine import SimpleTrainer
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import (
    FPN,
    META_ARCH_REGISTRY,
    GeneralizedRCNN,
    GeneralizedRCNNWithTTA,
    build_model,
)
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    CheckpointWrapper,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

from skd import (
    DISTILLER_REGISTRY,
    Distiller,
    DistillRCNN,
    StructuredDistiller,
    detach,
    student_config,
    student_of,
)
from skd.config import yaml_config
from skd.config.naming import LAZY, written_as
from skd.modeling.attach import _reserved
from tests.helpers import TERMS, batch, distilling, read, tiny_config
from tests.processes import environment


@pytest.fixture
def build(teacher_files):
    """A distilling model whose student is of the class that is given, and its config."""

    def build(student=GeneralizedRCNN, **changes):
        name = student.__name__
        if name not in META_ARCH_REGISTRY:
            META_ARCH_REGISTRY.register(student)
        changes = {"MODEL__STUDENT__META_ARCHITECTURE": name, **changes}
        cfg = distilling(tiny_config("faster_rcnn"), teacher_files, **changes)
        torch.manual_seed(0)
        model = build_model(cfg)
        yours = META_ARCH_REGISTRY._obj_map
        if student is not GeneralizedRCNN:
            del yours[name]
        return model, cfg

    return build


def step(model, inputs=None, **kwargs):
    torch.manual_seed(3)  # for the sampling of proposals
    with EventStorage():
        return model.train()(batch() if inputs is None else inputs, **kwargs)


def attach(model, student, **parts):
    """Let a student distil with another model's teacher."""
    parts = {"distiller": StructuredDistiller(), **parts}
    return DistillRCNN(student=student, teacher=model.teacher, **parts)


def distillation(losses):
    return sum(v for k, v in losses.items() if k.startswith("loss_distill_"))


class KeepsNorms(GeneralizedRCNN):
    """Batch norm of the backbone stays in eval mode."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def test_train_of_the_student_has_the_last_word(build):
    model, _ = build(KeepsNorms)
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in norms]
    step(model)
    assert norms and not any(m.training for m in norms)
    assert all(torch.equal(m.running_mean, mean) for m, mean in zip(norms, before))
    assert model.roi_heads.training and model.distiller.training


def test_it_is_the_object_that_was_given(build):
    model, cfg = build()
    student = build_model(student_config(cfg))
    again = attach(model, student)
    assert again is student and type(again) is type(model)
    assert isinstance(again, DistillRCNN) and isinstance(again, GeneralizedRCNN)


def test_test_time_augmentation_in_the_middle_of_training(build):
    model, cfg = build()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (96,), 128
    step(model)
    augmented = GeneralizedRCNNWithTTA(cfg, model.eval())
    with torch.no_grad():
        (result,) = augmented(batch(1))
    assert "instances" in result
    assert model.preprocess_image(batch()).tensor.shape == (2, 3, 96, 128)
    assert set(step(model)) > set(TERMS)


def test_a_child_that_is_replaced_or_added_is_the_one(build):
    model, cfg = build()
    other = build_model(student_config(cfg)).backbone
    model.backbone = other
    model.add_module("late", nn.Linear(2, 2))
    losses = step(model)
    grads = torch.autograd.grad(distillation(losses), list(other.parameters()), allow_unused=True)
    assert sum(g is not None for g in grads) > 10
    assert "late.weight" in model.state_dict() and "late.weight" in dict(model.named_parameters())


def same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)


def gradients(model):
    losses = step(model)
    sum(losses.values()).backward()
    names = (n.replace("_checkpoint_wrapped_module.", "") for n, _ in model.named_parameters())
    return losses, dict(zip(names, (p.grad for p in model.parameters())))


@pytest.mark.parametrize("features", ["backbone", "backbone.bottom_up"])
def test_activation_checkpointing_changes_no_loss_and_no_gradient(build, features):
    keys = {f"MODEL__{who}__FEATURES": features for who in ("STUDENT", "TEACHER")}
    expected, grads = gradients(build(**keys)[0])
    model, _ = build(**keys)
    keys = list(model.state_dict())
    # without a condition it wraps lists of modules too, which no detector of Detectron2 survives
    apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, (FPN, CNNBlockBase)))
    assert isinstance(model.backbone, CheckpointWrapper)
    losses, ours = gradients(model)
    same(losses, expected)
    same(ours, grads)
    assert list(model.state_dict()) == keys


def test_checkpointing_that_cuts_the_maps_off_is_refused(build):
    keys = {f"MODEL__{who}__FEATURES": "backbone.bottom_up" for who in ("STUDENT", "TEACHER")}
    model, _ = build(**keys)
    model.backbone = checkpoint_wrapper(model.backbone, CheckpointImpl.REENTRANT)
    with pytest.raises(ValueError, match="None of the maps .*'res2'.* has a gradient.*Reentrant"):
        step(model)


def test_a_compiled_backbone_gives_the_same_losses(build):
    expected = step(build()[0])
    model, _ = build()
    model.backbone = torch.compile(model.backbone, backend="eager")
    same(step(model), expected)


@pytest.mark.parametrize("balance", [True, False])
def test_a_compiled_head_gives_the_same_losses(teacher_files, balance):
    """Its backward pass runs twice where gradients are measured, with a balance or without."""
    cfg = distilling(tiny_config(), teacher_files, balance=balance)
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = build_model(cfg)
        head = model.roi_heads.mask_head
        if compiled:
            # as from the second step on, with another number of boxes
            head.layers = torch.compile(head.layers, backend="aot_eager", dynamic=True)
        model.pop_metrics()  # from here on there are some
        found.append(gradients(model))
        assert model.pop_metrics()["distill/share_structured_am"] > 0
    for expected, given in zip(*found):
        assert given.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(given[name], value, rtol=1e-3, atol=1e-4)


def test_batch_norm_is_synchronized_in_place(build):
    model, _ = build()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted is model
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, nn.SyncBatchNorm) for m in norms)


class Versioned(GeneralizedRCNN):
    """Reads a key of its checkpoints by another name since version 3."""

    _version = 3

    def _load_from_state_dict(self, state, prefix, metadata, *args):
        assert metadata["version"] == 3
        state[f"{prefix}pixel_scale"] = state.pop(f"{prefix}scale")
        super()._load_from_state_dict(state, prefix, metadata, *args)

    def __init__(self, cfg):
        super().__init__(cfg)
        self.register_buffer("pixel_scale", torch.zeros(()))
        self._register_state_dict_hook(self._rename)

    @staticmethod
    def _rename(module, state, prefix, metadata):
        state[f"{prefix}scale"] = state.pop(f"{prefix}pixel_scale")


def test_versions_and_hooks_at_the_root(build):
    model, _ = build(Versioned)
    state = model.state_dict()
    assert "scale" in state and "pixel_scale" not in state
    state["scale"].fill_(2.0)
    state["backbone.fpn_lateral2.weight"].fill_(5.0)
    other, _ = build(Versioned)
    assert not any(other.load_state_dict(state))
    assert other.pixel_scale == 2 and (other.backbone.fpn_lateral2.weight == 5).all()


class Branches(GeneralizedRCNN):
    def forward(self, x, branch="supervised", do_postprocess=True):
        self.told = branch, do_postprocess
        return super().forward(x) if self.training else self.inference(x, None, do_postprocess)


def test_arguments_of_forward_pass_through(build):
    model, _ = build(Branches)
    assert set(step(model, branch="weak")) > set(TERMS) and model.told == ("weak", True)
    with EventStorage():
        assert set(model(x=batch(), branch="strong")) > set(TERMS)
    with torch.no_grad():
        (raw,) = model.eval()(batch(1), do_postprocess=False)
    assert raw.has("pred_boxes") and model.told == ("supervised", False)
    arrays = [{**x, "image": x["image"].numpy()} for x in batch()]
    with EventStorage(), pytest.raises(TypeError, match="batch is a numpy.ndarray; it must be a t"):
        model.train()(arrays)
    with pytest.raises(TypeError, match="list of dicts with 'image'"):
        model.train()(torch.zeros(3, 4, 4))


class Named(GeneralizedRCNN):
    @property
    def teacher(self):
        raise AttributeError("not yet")


class Named2(GeneralizedRCNN):
    def pop_metrics(self):
        return {}


@pytest.mark.parametrize("name", ["distiller", "teacher", "pop_metrics"])
def test_a_student_with_a_name_of_ours_is_refused(build, name):
    model, cfg = build()
    kind = {"teacher": Named, "pop_metrics": Named2}.get(name, GeneralizedRCNN)
    student = kind(student_config(cfg))
    if name == "distiller":
        student.distiller = nn.Identity()
    with pytest.raises(ValueError, match=f"a {kind.__name__}, has an attribute '{name}'"):
        attach(model, student)
    assert type(student) is kind


class ManyNames(GeneralizedRCNN):
    """Whose names are its own, and which answers for its backbone."""

    pairs, attach, watch_maps = "its", "own", "names"

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("backbone"), name)


def test_all_other_names_are_the_student_s(build):
    """The three public names that are taken are those of the document."""
    model, _ = build(ManyNames)
    taken = {"distiller", "teacher", "pop_metrics"}
    assert set(_reserved(DistillRCNN)) == {*taken, "_skd", "_skd_distils"}
    assert all(f"`{name}`" in read("docs/plugging_in.md") for name in taken)
    assert (model.pairs, model.attach, model.watch_maps) == ("its", "own", "names")
    assert model.size_divisibility == 32
    assert type(student_of(model)).from_config.__func__ is type(model).from_config.__func__
    assert set(step(copy.deepcopy(model))) > set(TERMS)


def test_what_would_not_distil_is_refused(build):
    model, cfg = build()
    with pytest.raises(ValueError, match="DistillRCNN already"):
        attach(model, model)
    compiled = torch.compile(build_model(student_config(cfg)))
    with pytest.raises(ValueError, match="forward.. on the object.*torch.compile"):
        attach(model, compiled, input_format="BGR")
    plain = build_model(student_config(cfg))
    with pytest.raises(ValueError, match="StructuredDistiller is another model's distiller"):
        attach(model, plain, distiller=model.distiller)
    with pytest.raises(ValueError, match="DistillRCNN's balance is True; it must be a Gradient"):
        attach(model, plain, balance=True)
    assert type(plain) is GeneralizedRCNN and type(attach(model, plain)) is type(model)


class Wraps(GeneralizedRCNN):
    """Changes the dict of maps in place, as DETR's wrapper does."""

    def forward(self, inputs):
        images = self.preprocess_image(inputs)
        features = self.backbone(images.tensor)
        loss = features["p2"].mean()
        for name in features:
            features[name] = features[name] * 0
        return {"loss": loss}


def test_the_maps_are_those_of_the_backbone(build):
    model, _ = build(Wraps)
    terms = distillation(step(model))
    weights = [p for n, p in model.backbone.named_parameters() if "fpn" in n]
    grads = torch.autograd.grad(terms, weights, allow_unused=True)
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


def test_a_replacement_with_other_maps_is_refused(build):
    model, _ = build(Wraps)
    model.backbone = build(MODEL__FPN__OUT_CHANNELS=8)[0].backbone
    with pytest.raises(ValueError, match="says 16 channels"):
        step(model)


class Hungry(GeneralizedRCNN):
    """Leaves nothing of the batch."""

    def forward(self, inputs):
        losses = super().forward(inputs)
        for x in inputs:
            x.pop("instances").gt_boxes.tensor.zero_()
            x["image"] = x["image"].repeat(1, 4, 4)  # for which the maps would be too small
        return losses


def test_the_batch_is_read_before_the_student_changes_it(build):
    expected = step(build(MODEL__DISTILLER__NAME="FGD")[0])
    ours = step(build(Hungry, MODEL__DISTILLER__NAME="FGD")[0])
    assert any(k.startswith("loss_distill_fgd") for k in ours)
    same(ours, expected)


class Twice(GeneralizedRCNN):
    def forward(self, inputs):
        self.backbone(self.preprocess_image(inputs).tensor)
        return super().forward(inputs)


class Past(Wraps):
    def forward(self, inputs):
        return {"loss": self.backbone.forward(self.preprocess_image(inputs).tensor)["p2"].mean()}


class ThreeOfEach(GeneralizedRCNN):
    """A student that takes the batch three times, as TridentNet does in training."""

    def forward(self, inputs):
        x = self.preprocess_image(inputs).tensor
        return {"loss": self.backbone(torch.cat([x, x, x]))["p2"].mean()}


class WrongStrides(GeneralizedRCNN):
    def __init__(self, cfg):
        super().__init__(cfg)
        shapes = self.backbone.output_shape()
        self.backbone.output_shape = lambda: {
            "p2": ShapeSpec(channels=16, stride=8), "p3": ShapeSpec(channels=16, stride=16),
            **{n: shapes[n] for n in ("p5", "p6")},
        }  # fmt: skip


class NoLosses(GeneralizedRCNN):
    def forward(self, inputs):
        super().forward(inputs)
        return "pseudo labels"


class EmptyLosses(GeneralizedRCNN):
    def forward(self, inputs):
        super().forward(inputs)
        return {}


class NamedLosses(GeneralizedRCNN):
    def forward(self, inputs):
        return {**super().forward(inputs), "accuracy": 0.5}


class Enlarges(GeneralizedRCNN):
    def preprocess_image(self, inputs):
        x = super().preprocess_image(inputs).tensor
        return ImageList(nn.functional.interpolate(x, scale_factor=2), [(192, 256)] * len(x))


@pytest.mark.parametrize(
    "student,error,message",
    [
        (Twice, ValueError, "STUDENT.FEATURES names a FPN that ran 2 times"),
        (Past, ValueError, r"STUDENT.FEATURES names a FPN that ran 0 times.*forward\(\)"),
        (ThreeOfEach, ValueError, r"'p2' \(6, 16, 24, 32\).*batch has 2 images"),
        (WrongStrides, ValueError, r"'p2' \(2, 16, 24, 32\).*at most \(12, 16\).*stride 8"),
        (NoLosses, TypeError, "returned a str in training"),
        (EmptyLosses, ValueError, "empty dict of losses"),
        (NamedLosses, TypeError, "loss 'accuracy' is float; it must be one number"),
        (Enlarges, ValueError, r"student took images of \(192, 256\).*largest is \(96, 128\)"),
    ],
)
def test_steps_that_cannot_be_distilled_are_refused(build, student, error, message):
    with pytest.raises(error, match=message):
        step(build(student)[0])


class NoMapFirst(GeneralizedRCNN):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.backbone.register_forward_hook(lambda module, inputs, maps: {"aux": None, **maps})


def test_what_is_no_map_and_not_distilled_is_no_matter(build):
    assert any(name.startswith("loss_distill") for name in step(build(NoMapFirst)[0]))


class OneLoss(GeneralizedRCNN):
    def forward(self, inputs):
        return sum(super().forward(inputs).values())


class FlatLosses(GeneralizedRCNN):
    def forward(self, inputs):
        return {k: v.reshape(1) for k, v in super().forward(inputs).items()}


class WithPredictions(GeneralizedRCNN):
    """A student like Unbiased Teacher's, whose trainer takes the losses from a tuple."""

    def forward(self, inputs, branch="supervised"):
        losses = super().forward(inputs)
        return ({} if branch == "weak" else losses), "proposals", None


def test_losses_in_front_of_a_tuple(build):
    model, _ = build(WithPredictions)
    losses, *others = step(model)
    assert set(losses) > set(TERMS) and others == ["proposals", None]
    same(losses, step(build()[0]))
    with torch.no_grad():
        assert step(model, branch="weak") == ({}, "proposals", None)


class CallsItself(GeneralizedRCNN):
    def forward(self, inputs, inner=False):
        return super().forward(inputs) if inner else self(inputs, inner=True)


def test_a_student_that_calls_itself(build):
    same(step(build(CallsItself)[0]), step(build()[0]))


@pytest.mark.parametrize("student", [OneLoss, FlatLosses])
def test_losses_that_simple_trainer_takes(build, student):
    model, cfg = build(student)
    expected = build_model(student_config(tiny_config("faster_rcnn")))
    expected.load_state_dict(student_of(model).state_dict())
    plain = sum(step(expected).values())
    losses = step(model)
    own = sum(v for k, v in losses.items() if k not in TERMS)
    torch.testing.assert_close(own.reshape(()), plain)
    trainer = SimpleTrainer(
        model, iter([batch()]), torch.optim.SGD(model.parameters(), 1e-3), gather_metric_period=1
    )
    with EventStorage() as storage:
        trainer.iter = 0
        trainer.run_step()
        logged = {k: v[0] for k, v in storage.latest().items()}
    parts = [logged[k] for k in losses]
    assert logged["total_loss"] == pytest.approx(sum(parts), rel=1e-6)


def test_other_models_with_such_a_name_are_loaded_as_before():
    """A child ``distiller`` that is no distiller is matched as Detectron2 does."""
    model = nn.ModuleDict({"distiller": nn.Linear(2, 2), "other": nn.ReLU()})
    weights = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    matched = detection_checkpoint.align_and_update_state_dicts(model.state_dict(), weights)
    assert set(matched) == {"distiller.weight", "distiller.bias"}


def test_matching_heuristics_spare_the_distiller_of_a_process_that_attached_none(build, tmp_path):
    model, _ = build()
    with open(tmp_path / "model.pkl", "wb") as f:
        pickle.dump(model, f)
    code = (
        "import pickle, sys; from detectron2.checkpoint import detection_checkpoint as d\n"
        "model = pickle.load(open(sys.argv[1], 'rb')); state = model.state_dict()\n"
        "name = 'levels.p2.feature_adapter.weight'\n"
        "weights = {name: state['distiller.' + name]}\n"
        "found = d.align_and_update_state_dicts(state, weights, c2_conversion=False)\n"
        "print([name for name in found if name.startswith('distiller.')])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "model.pkl")],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr[-2000:]


def test_matching_heuristics_spare_the_distiller(build, tmp_path):
    """A backbone's file with a bare ``norm.weight``, as wide as the non-local blocks are."""
    keys = {f"MODEL__{who}__FEATURES": "backbone.bottom_up" for who in ("STUDENT", "TEACHER")}
    model, cfg = build(**keys)
    blocks = [v for k, v in model.distiller.state_dict().items() if k.endswith("norm.weight")]
    prefix = "backbone.bottom_up."
    state = {
        k[len(prefix) :]: np.full(tuple(v.shape), 0.5, np.float32)
        for k, v in model.state_dict().items()
        if k.startswith(prefix)
    }
    mine = {len(v) for k, v in student_of(model).state_dict().items() if k.endswith("norm.weight")}
    assert {len(block) for block in blocks} - mine  # which no norm of the student matches
    for width in {len(block) for block in blocks} - mine:
        state["norm.weight"] = np.full(width, 1.3, np.float32)
        with open(tmp_path / "net.pkl", "wb") as f:
            pickle.dump({"model": state, "__author__": "x", "matching_heuristics": True}, f)
        before = {k: v.clone() for k, v in model.distiller.state_dict().items()}
        DetectionCheckpointer(model).load(str(tmp_path / "net.pkl"))
        after = model.distiller.state_dict()
        assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert (model.backbone.bottom_up.res5[0].conv1.weight == 0.5).all()


def test_the_student_can_be_had_back(build):
    model, cfg = build()
    plain = build_model(student_config(cfg))
    student = student_of(model)
    assert type(student) is GeneralizedRCNN and student_of(plain) is plain
    assert list(student.state_dict()) == list(plain.state_dict())
    assert vars(student).keys() == vars(plain).keys()
    assert not set(TERMS) & set(step(student))
    model.backbone.fpn_lateral2.weight.data.fill_(7.0)
    assert (student.backbone.fpn_lateral2.weight == 7).all()
    assert set(step(model)) > set(TERMS)


def test_distillation_ends_in_place(build):
    model, cfg = build()
    plain, distiller = build_model(student_config(cfg)), model.distiller
    assert detach(model) is model and type(model) is GeneralizedRCNN
    assert vars(model).keys() == vars(plain).keys()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert not set(TERMS) & set(step(model)) and detach(plain) is plain
    other, _ = build()
    with pytest.raises(ValueError, match="another model's distiller"):
        attach(other, model, distiller=distiller)
    assert set(step(attach(other, model))) > set(TERMS)


def test_an_assigned_teacher_is_no_child(build):
    model, cfg = build()
    names, teacher = list(model.state_dict()), build()[0].teacher
    model.teacher = teacher
    assert model.teacher is teacher and list(model.state_dict()) == names
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in model.parameters()}
    keys = {f"MODEL__{who}__FEATURES": "backbone.bottom_up" for who in ("STUDENT", "TEACHER")}
    with pytest.raises(ValueError, match="(?s)teacher has other feature maps.*res2.*p2"):
        model.teacher = build(**keys)[0].teacher
    assert model.teacher is teacher


def test_averages_of_the_weights_share_the_teacher(build):
    model, _ = build()
    average = torch.optim.swa_utils.AveragedModel(model)
    assert average.module.teacher is model.teacher
    assert average.module.distiller is not model.distiller
    average.update_parameters(model)
    same(step(average.module), step(model))
    average.double()  # which leaves the model's where it is
    assert average.module.teacher is not model.teacher
    assert {p.dtype for p in model.teacher.parameters()} == {torch.float32}


def test_emptied_memory_is_not_the_teacher_s(build):
    model, _ = build()
    before = {k: v.clone() for k, v in model.teacher.state_dict().items()}
    model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.constant_(p.data, 7.0)
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.state_dict().items())


class HalfOfP2(GeneralizedRCNN):
    """Detectron2's heads do not run in half precision on CPUs."""

    def forward(self, inputs):
        return {"loss": self.backbone(self.preprocess_image(inputs).tensor)["p2"].mean()}


@pytest.mark.parametrize("name", ["StructuredDistiller", "Own"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_student_in_half_precision(build, name, dtype):
    if name == "Own":
        DISTILLER_REGISTRY.register(Own)
    try:
        keys = {"MODEL__DISTILLER__NAME": name, "balance": True}
        expected = step(build(HalfOfP2, **keys)[0])
        model = build(HalfOfP2, **keys)[0].to(dtype)
        assert {p.dtype for p in model.backbone.parameters()} == {dtype}
        assert {p.dtype for p in model.distiller.parameters()} == {torch.float32}
        step(model)  # fp16: finds a scale that does not overflow
        losses = step(model)
        sum(losses.values()).backward()
    finally:
        DISTILLER_REGISTRY._obj_map.pop("Own", None)
    for key, value in expected.items():
        assert losses[key].item() == pytest.approx(value.item(), rel=0.1, abs=0.01), key
    grads = [p.grad for n, p in model.backbone.named_parameters() if "fpn" in n]
    assert all(g.isfinite().all() for g in grads)


class Own(Distiller):
    """Which does without the base class that keeps to fp32."""

    def bind(self, shapes):
        self.layers = nn.ModuleDict(
            {k: nn.Conv2d(s.channels, t.channels, 1) for k, (s, t) in shapes.items()}
        )

    def forward(self, student, teacher, boxes=None):
        return {
            "loss_distill_own": {
                k: (layer(student[k]) - teacher[k]).square().mean()
                for k, layer in self.layers.items()
            }
        }


@pytest.mark.parametrize(
    "terms,error,message",
    [
        ({}, ValueError, "Returns returned no terms, so nothing is distilled"),
        ({"loss_distill_x": {}}, ValueError, "returned no level of loss_distill_x"),
        (None, TypeError, "Returns returned a NoneType; the forward of a distiller must"),
        ({"loss_distill_x": 1.0}, TypeError, "returned {'loss_distill_x': float}"),
    ],
)
def test_a_distiller_that_does_not_distil_is_an_error(build, terms, error, message):
    model, _ = build()
    model.distiller = Returns()
    model.distiller.terms = terms
    with pytest.raises(error, match=message):
        step(model)


class Returns(Distiller):
    def forward(self, student, teacher, boxes=None):
        return self.terms


class CopiesItself(GeneralizedRCNN):
    """A student that copies itself from what made it, as some projects' detectors do."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.cfg = cfg

    def __deepcopy__(self, memo):
        twin = type(self)(self.cfg)
        twin.load_state_dict(self.state_dict())
        return twin

    @classmethod
    def from_config(cls, cfg):
        return super().from_config(cfg)


class PicklesItself(CopiesItself):
    __deepcopy__ = None

    def __reduce__(self):
        return _remake, (self.cfg, self.state_dict())


del PicklesItself.__deepcopy__


def _remake(cfg, state):
    model = PicklesItself(cfg)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("student", [CopiesItself, PicklesItself])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_students_that_copy_or_pickle_themselves(build, student, duplicate):
    model, _ = build(student)
    twin = duplicate(model)
    assert type(twin) is type(model) and twin.backbone is not model.backbone
    expected, losses = (step(m) for m in (model, twin))
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[k], v) for k, v in expected.items())


class Counts(DistillRCNN):
    """A subclass for a YAML config."""

    def __new__(cls, cfg=None, **kwargs):
        model = super().__new__(cls, cfg, **kwargs)
        model.steps = 0
        return model

    def forward(self, inputs):
        self.steps += 1
        return super().forward(inputs)


def test_a_subclass_in_a_yaml_config(teacher_files):
    cfg = distilling(tiny_config("faster_rcnn"), teacher_files)
    META_ARCH_REGISTRY.register(Counts)
    try:
        cfg.MODEL.META_ARCHITECTURE = "Counts"
        assert yaml_config.is_distilling(cfg)
        assert student_config(cfg).MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
        model = build_model(cfg)
        assert set(step(model)) > set(TERMS) and model.steps == 1
        assert isinstance(pickle.loads(pickle.dumps(model)), Counts)
        again = cfg.clone()
        yaml_config.distill(again, *teacher_files)
        assert again.MODEL.META_ARCHITECTURE == "Counts"
        cfg.MODEL.TEACHER.CONFIG_FILE = ""
        with pytest.raises(ValueError, match="META_ARCHITECTURE is Counts, and MODEL.TEACHER"):
            yaml_config.check_teacher(cfg)
        cfg.MODEL.STUDENT.META_ARCHITECTURE = "Counts"
        with pytest.raises(ValueError, match="STUDENT.META_ARCHITECTURE is 'Counts'; it must"):
            build_model(cfg)
    finally:
        META_ARCH_REGISTRY._obj_map.pop("Counts")


def test_a_subclass_with_an_init_is_refused():
    with pytest.raises(TypeError, match="Late, a subclass of DistillRCNN, has an __init__.*__new_"):

        class Late(DistillRCNN):
            def __init__(self, cfg):
                super().__init__(cfg)


@pytest.mark.parametrize(
    "parts,yaml_key,lazy_key,argument",
    [
        (
            {"features": "neck"},
            "MODEL.STUDENT.FEATURES",
            "model.features",
            "DistillRCNN's features",
        ),
        ({"levels": ["p9"]}, "MODEL.DISTILLER.LEVELS", "model.levels", "DistillRCNN's levels"),
        ({"every": 0}, "MODEL.DISTILLER.EVERY", "model.every", "DistillRCNN's every"),
    ],
)
def test_errors_name_what_the_user_wrote(build, parts, yaml_key, lazy_key, argument):
    model, cfg = build()
    student = build_model(student_config(cfg))
    with pytest.raises(ValueError, match=f"^{argument} "):
        attach(model, student, **parts)
    with pytest.raises(ValueError, match=f"^{lazy_key} "), written_as(LAZY):
        attach(model, student, **parts)
    (value,) = parts.values()
    with pytest.raises(ValueError, match=f"^{yaml_key} "):
        cfg.merge_from_list([yaml_key, value])
        DistillRCNN(cfg)
