"""Errors name a setting as the user wrote it: by YAML key, Lazy path or Python argument."""

import ast
import os
import re
from types import SimpleNamespace

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from skd import DistillRCNN, FrozenTeacher, GradientBalance, StructuredDistiller
from skd.config.naming import LAZY, PYTHON, YAML, called, setting_to, written_as
from skd.config.run_settings import settings
from skd.data.fit import ModelFacts, _check_heads
from skd.distillers.pkd import PKD
from skd.engine.readout import _warnings
from skd.engine.run import check_device
from skd.modeling import attach, distill_step, features, inherit, load, model_zoo, teacher
from skd.modeling.build_detector import DetectorSource, build_detector
from skd.modeling.heads import TeacherHeads
from skd.modeling.timm_backbone import TimmBackbone, _read_weights
from skd.runtime import words
from tests.helpers import ROOT, batch, distilling, tiny_config

YAML_KEY = re.compile(r"\b[A-Z]{2,}[A-Z0-9_]*\.[A-Z]|\b[A-Z]+_[A-Z_]+\b")


@pytest.mark.parametrize(
    "key, lazy, python",
    [
        ("MODEL.TEACHER.PRECISION", "model.teacher.precision", "the teacher's precision"),
        ("MODEL.STUDENT.FEATURES", "model.features", "DistillRCNN's features"),
        ("MODEL.DISTILLER.EVERY", "model.every", "DistillRCNN's every"),
        ("MODEL.DISTILLER.BALANCE", "model.balance", "DistillRCNN's balance"),
        ("MODEL.TIMM.NORM", "TimmBackbone's norm", "TimmBackbone's norm"),
        ("MODEL.DEVICE", "train.device", "device"),
        ("MODEL.TEACHER.EVALUATE", "train.evaluate_teacher", "evaluate_teacher"),
        ("INPUT.FORMAT", "input_format", "input_format"),
    ],
)
def test_each_form_has_its_own_word(key, lazy, python):
    for form, expected in ((YAML, key), (LAZY, lazy), (PYTHON, python)):
        with written_as(form):
            assert called(key) == expected
    assert called(key) == python  # Python's, where nobody says otherwise


def test_the_runtime_says_the_same():
    for form, expected in ((YAML, "OUTPUT_DIR"), (LAZY, "train.output_dir")):
        with written_as(form):
            assert words.called("output_dir") == called("OUTPUT_DIR") == expected
            with written_as(PYTHON):
                assert words.called("output_dir") == called("OUTPUT_DIR") == "output_dir"
    for setting in settings():
        with written_as(LAZY):
            assert words.called(setting.name) == setting.lazy


def test_a_setting_is_set_as_each_form_sets_it():
    assert setting_to(called("MODEL.DISTILLER.EVERY"), 2) == "DistillRCNN's every=2"
    with written_as(YAML):
        assert setting_to(called("MODEL.DISTILLER.EVERY"), 2) == "MODEL.DISTILLER.EVERY 2"
    with written_as(LAZY):
        assert setting_to(called("MODEL.DISTILLER.EVERY"), 2) == "model.every=2"


P2, P3 = ShapeSpec(channels=8, stride=4), ShapeSpec(channels=8, stride=8)
HIDDEN = torch.rand(1, 3, 900, 900)  # a canvas with other pixels where padding has to be


def differing_channels():
    method = StructuredDistiller(weight_at=1.0, adapter=False, preset="two_stage")
    method.bind_once({"p2": (P2, ShapeSpec(channels=16, stride=4))})


def uncommon_batch(whose):
    tapped = features.Tapped({"p2": torch.zeros(3, 8, 4, 4)}, None)
    features.check_maps(tapped, {"p2": P2}, [(16, 16)], whose)


def nothing_left():
    GradientBalance(warmup=3, max_iter=9)


def between_steps():
    distill_step._distils_now(SimpleNamespace(_skd=SimpleNamespace(every=2)))


def built_before(**given):
    frozen = FrozenTeacher.__new__(FrozenTeacher)
    teacher.freeze_built(frozen, {}, **given)


# what raises, and what the user calls the setting in a LazyConfig and in Python
RAISED = [
    (lambda: attach.check_every(0), "model.every", "DistillRCNN's every"),
    (lambda: attach._check_weight(-1), "model.unlabelled_weight", "unlabelled_weight"),
    (lambda: attach._as_balance("yes"), "model.balance", "DistillRCNN's balance"),
    (lambda: features.pair_levels({"p2": P2}, {"p2": P2}, ["p9"]), "model.levels", "levels"),
    (lambda: uncommon_batch("student"), "model.features", "DistillRCNN's features"),
    (lambda: uncommon_batch("teacher"), "model.teacher.features", "the teacher's features"),
    (
        lambda: features.check_input(HIDDEN, [(64, 64)], nn.Identity(), "student"),
        "dataloader.train.mapper.augmentations",
        "the mapper's augmentations",
    ),
    (lambda: model_zoo.find_config(""), "model.teacher.config_file", "the teacher's config_file"),
    (lambda: model_zoo.zoo_weights("x.yaml"), "model.teacher.weights", "the teacher's weights"),
    (lambda: load.check_exists("none.pth"), "model.teacher.weights", "the teacher's weights"),
    (lambda: teacher._check("fp8", None, False), "model.teacher.precision", "precision"),
    (lambda: teacher._check("fp32", "w", True), "model.teacher.random_weights", "random_weights"),
    (lambda: built_before(opts=["a=1"]), "model.teacher.opts", "the teacher's opts"),
    (lambda: inherit.inherit(nn.Identity(), {}), "model.inherit", "DistillRCNN's inherit"),
    (lambda: TeacherHeads(names=["Head"]), "model.heads.names", "TeacherHeads's names"),
    (lambda: TeacherHeads(temperature=-1), "model.heads.temperature", "TeacherHeads's temperature"),
    (lambda: TimmBackbone("x", norm="LN"), "TimmBackbone's norm", "TimmBackbone's norm"),
    (lambda: TimmBackbone("x", weights="none.pth"), "TimmBackbone's name", "TimmBackbone's name"),
    (lambda: _read_weights("none.pth"), "TimmBackbone's weights", "TimmBackbone's weights"),
    (between_steps, "model.every", "DistillRCNN's every"),
    (differing_channels, "model.distiller.adapter", "StructuredDistiller's adapter"),
    (differing_channels, "model.distiller.weight_at", "StructuredDistiller's weight_at"),
    (lambda: PKD(weight=-1.0), "model.distiller.weight is -1.0", "PKD's weight is -1.0"),
    (lambda: GradientBalance(period=0), "model.balance.period", "GradientBalance's period"),
    (lambda: GradientBalance(decay="linear"), "model.balance.decay", "GradientBalance's decay"),
    (nothing_left, "model.balance.warmup", "GradientBalance's ramp"),
    (lambda: check_device("oven", called("MODEL.DEVICE")), "train.device", "device"),
]


def message_of(cause):
    with pytest.raises((ValueError, OSError)) as error:
        cause()
    return str(error.value)


@pytest.mark.parametrize("cause, lazy, python", RAISED)
def test_an_error_has_no_key_of_a_form_that_the_user_did_not_write(cause, lazy, python):
    with written_as(LAZY):
        message = message_of(cause)
    assert lazy in message and not YAML_KEY.search(message), message
    message = message_of(cause)
    assert python in message and not YAML_KEY.search(message), message


@pytest.mark.parametrize(
    "cause, key",
    [
        (differing_channels, "STRUCTURED.ADAPTER"),
        (lambda: StructuredDistiller(key_stride=0), "STRUCTURED.NON_LOCAL.KEY_STRIDES"),
        (lambda: PKD(weight=-1.0), "PKD.WEIGHT"),
        (lambda: GradientBalance(decay="linear"), "BALANCE.DECAY"),
        (nothing_left, "BALANCE.WARMUP"),
        (lambda: TeacherHeads(names=["Head"]), "HEADS.NAMES"),
    ],
)
def test_a_yaml_user_reads_the_key_of_a_distiller_s_setting(cause, key):
    with written_as(YAML):
        assert f"MODEL.DISTILLER.{key} " in message_of(cause)


@pytest.mark.parametrize("form, word", [(YAML, "MODEL.TEACHER.OPTS"), (LAZY, "model.teacher.opts")])
def test_a_teacher_s_opts_are_named(form, word, teacher_files):
    with written_as(form):
        source = DetectorSource(*teacher_files, opts=["MODEL.NOSE", 1])
        message = message_of(lambda: build_detector(source))
    assert f" with {word} ['MODEL.NOSE', 1] cannot be read" in message


def test_a_number_of_classes_is_set_as_the_form_sets_it():
    model = ModelFacts((("model.roi_heads.num_classes", 80),))
    with written_as(LAZY):
        message = message_of(lambda: _check_heads("d", ["a", "b"], model))
    assert "has model.roi_heads.num_classes=80. Set model.roi_heads.num_classes=2, or" in message


@pytest.mark.parametrize("form, key", [(YAML, "MODEL.STUDENT.FEATURES"), (LAZY, "model.features")])
def test_a_warning_of_the_log_names_the_setting(form, key):
    with written_as(form):
        (warning,) = _warnings({"distill/norm_detector": 0.0}, {})
    assert f"or {key} names a module" in warning


@pytest.mark.parametrize("form, key", [(YAML, "MODEL.DISTILLER.EVERY"), (LAZY, "model.every")])
def test_a_model_keeps_the_words_of_its_config_for_its_steps(form, key, teacher_files):
    cfg = distilling(tiny_config(), teacher_files, MODEL__DISTILLER__EVERY=2)
    with written_as(form):
        parts = DistillRCNN.from_config(cfg)
        model = DistillRCNN(**parts)
    assert message_of(lambda: model.train()(batch())).startswith(f"{key} is 2, and there is no")


SKD = os.path.join(ROOT, "projects", "skd")
KEY = re.compile(r"\b(MODEL|SOLVER|TEST|DATASETS|INPUT|DATALOADER)\.[A-Z]|\b[A-Z]{4,}_[A-Z_]+\b")
ROOMS = ("modeling", "distillers", "runtime")  # which serve every form of config


def keys_in_messages(tree):
    """Keys that stand as such in the message of an error, outside of what is given a config."""
    found = []

    def visit(node, inside):
        if isinstance(node, ast.FunctionDef):
            if "cfg" in [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]:
                return  # only a YAML config leads here
        if isinstance(node, ast.Call) and inside and not isinstance(node.func, ast.Attribute):
            if getattr(node.func, "id", "") in ("called", "_key"):
                return
        if isinstance(node, ast.Constant) and inside and isinstance(node.value, str):
            found.extend([node.value] if KEY.search(node.value) else [])
        for child in ast.iter_child_nodes(node):
            visit(child, inside or isinstance(node, ast.Raise))

    visit(tree, False)
    return found


def test_a_key_in_a_message_is_found():
    assert keys_in_messages(ast.parse("def f(x):\n    raise ValueError(f'MODEL.TIMM.NORM {x}')"))
    assert keys_in_messages(ast.parse("raise ValueError('let FEATURE_SHAPES say')"))
    assert not keys_in_messages(ast.parse("raise ValueError(f'{called(\"MODEL.TIMM.NORM\")} is')"))


@pytest.mark.parametrize("room", ROOMS)
def test_no_message_has_a_key_in_it_that_is_not_translated(room):
    paths = [os.path.join(p, n) for p, _, names in os.walk(os.path.join(SKD, room)) for n in names]
    paths = [path for path in paths if path.endswith(".py")]
    assert paths
    for path in paths:
        with open(path) as f:
            assert keys_in_messages(ast.parse(f.read())) == [], path
