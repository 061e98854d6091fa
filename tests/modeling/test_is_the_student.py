"""Whatever a person, a project or PyTorch does to a student reaches the model that distils it."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import SimpleTrainer
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import (
    FPN,
    META_ARCH_REGISTRY,
    GeneralizedRCNN,
    GeneralizedRCNNWithTTA,
    build_model,
)
from detectron2.utils.events import EventStorage
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    CheckpointWrapper,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

from skd import DistillRCNN, student_config, student_of
from tests.helpers import batch, distilling, tiny_config

TERMS = ["loss_distill_structured_am", "loss_distill_structured_at", "loss_distill_structured_nl"]


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
    again = DistillRCNN(student=student, teacher=model.teacher, distiller=model.distiller)
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
def test_activation_checkpointing(build, features):
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


def test_a_compiled_backbone(build):
    expected = step(build()[0])
    model, _ = build()
    model.backbone = torch.compile(model.backbone, backend="eager")
    same(step(model), expected)


def test_synchronised_batch_norm(build):
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
    with pytest.raises(TypeError, match="list of dicts with 'image'"):
        model.train()(torch.zeros(3, 4, 4))


@pytest.mark.parametrize("name", ["distiller", "teacher", "pairs"])
def test_a_student_with_a_name_of_ours_is_refused(build, name):
    model, cfg = build()
    student = build_model(student_config(cfg))
    setattr(student, name, nn.Identity())
    with pytest.raises(ValueError, match=f"a GeneralizedRCNN, has an attribute '{name}'"):
        DistillRCNN(student=student, teacher=model.teacher, distiller=model.distiller)
    assert type(student) is GeneralizedRCNN


def test_what_would_not_distil_is_refused(build):
    model, cfg = build()
    parts = {"teacher": model.teacher, "distiller": model.distiller}
    with pytest.raises(ValueError, match="DistillRCNN already"):
        DistillRCNN(student=model, **parts)
    compiled = torch.compile(build_model(student_config(cfg)))
    with pytest.raises(ValueError, match="forward.. on the object.*torch.compile"):
        DistillRCNN(student=compiled, input_format="BGR", **parts)


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
            x["image"] = x["image"][:, :8, :8]
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
    """As TridentNet in training: the batch three times."""

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
        return super().forward(inputs), "pseudo labels"


@pytest.mark.parametrize(
    "student,error,message",
    [
        (Twice, ValueError, "STUDENT.FEATURES names a FPN that ran 2 times"),
        (Past, ValueError, r"STUDENT.FEATURES names a FPN that ran 0 times.*forward\(\)"),
        (ThreeOfEach, ValueError, r"'p2' \(6, 16, 24, 32\).*batch has 2 images"),
        (WrongStrides, ValueError, r"'p2' \(2, 16, 24, 32\).*at most \(12, 16\).*stride 8"),
        (NoLosses, TypeError, "returned a tuple in training"),
    ],
)
def test_steps_that_cannot_be_distilled_are_refused(build, student, error, message):
    with pytest.raises(error, match=message):
        step(build(student)[0])


class OneLoss(GeneralizedRCNN):
    def forward(self, inputs):
        return sum(super().forward(inputs).values())


class FlatLosses(GeneralizedRCNN):
    def forward(self, inputs):
        return {k: v.reshape(1) for k, v in super().forward(inputs).items()}


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
