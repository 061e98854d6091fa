"""Config keys, arguments and defaults of the methods are one declaration."""

from dataclasses import dataclass, fields

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec

from skd import add_skd_config
from skd.config.methods import build_balance, build_distiller
from skd.config.naming import LAZY, YAML, written_as
from skd.distillers import (
    DISTILLER_REGISTRY,
    CombinedDistiller,
    Distiller,
    GradientBalance,
    Settings,
    StructuredDistiller,
)
from skd.distillers.settings import number

METHODS = [name for name, _ in DISTILLER_REGISTRY]
# what configs of earlier commits may hold: (node, keys)
KEYS = {
    "STRUCTURED": {"PRESET", "TEMPERATURE", "WEIGHT_AM", "WEIGHT_AT", "WEIGHT_NL", "MASK_FUSION",
                   "CHANNEL_MASK", "POOL", "ADAPTER", "REDUCTION", "NON_LOCAL"},
    "FITNETS": {"WEIGHT"}, "AT": {"WEIGHT"}, "SP": {"WEIGHT"}, "OFD": {"WEIGHT"},
    "FGFI": {"WEIGHT", "THRESHOLD", "ANCHOR_SCALE", "ASPECT_RATIOS"},
    "DEFEAT": {"WEIGHT_OBJECT", "WEIGHT_BACKGROUND", "CANONICAL_BOX_SIZE"},
    "FGD": {"WEIGHT_OBJECT", "WEIGHT_BACKGROUND", "WEIGHT_ATTENTION", "WEIGHT_GLOBAL",
            "TEMPERATURE"},
    "CWD": {"WEIGHT", "TEMPERATURE"}, "MGD": {"WEIGHT", "MASKED"}, "PKD": {"WEIGHT"},
    "SSIM": {"WEIGHT"}, "REVIEWKD": {"WEIGHT"},
}  # fmt: skip


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_skd_config(cfg)
    return cfg


@pytest.mark.parametrize("node", KEYS)
def test_configs_of_earlier_commits_load(cfg, node):
    assert KEYS[node] <= set(cfg.MODEL.DISTILLER[node])
    non_local = cfg.MODEL.DISTILLER.STRUCTURED.NON_LOCAL
    assert set(non_local) == {"AFFINITY", "NORM", "WIDTHS", "KEY_STRIDES"}


@pytest.mark.parametrize("name", METHODS)
def test_the_config_s_defaults_are_the_arguments(cfg, name):
    method = DISTILLER_REGISTRY.get(name)
    from_config, from_arguments = method(cfg).settings, method().settings
    for f in fields(from_arguments):
        value = getattr(from_config, f.name)
        assert (tuple(value) if isinstance(value, list) else value) == f.default


@pytest.mark.parametrize("name", METHODS)
def test_every_key_reaches_its_setting(cfg, name):
    """A wrong value is named by its key, and by its argument's name."""
    method = DISTILLER_REGISTRY.get(name)
    for f in fields(method.Settings):
        changed = cfg.clone()
        *parents, key = (f.metadata["key"] or f.name.upper()).split(".")
        node = changed.MODEL.DISTILLER[method.config_key()]
        for parent in parents:
            node = node[parent]
        node[key] = object()
        path = ".".join([method.config_key(), *parents, key])
        with pytest.raises(ValueError, match=f"MODEL.DISTILLER.{path} is "), written_as(YAML):
            method(changed)
        with pytest.raises(ValueError, match=f"{name}'s {f.name} is "):
            method(**{f.name: object()})


def test_an_unknown_argument_is_an_error():
    with pytest.raises(TypeError, match="CWD has no setting 'weigth'; do you mean 'weight'"):
        DISTILLER_REGISTRY.get("CWD")(weigth=1.0)
    with pytest.raises(TypeError, match="has no setting 'x'; it has weight, temperature"):
        DISTILLER_REGISTRY.get("CWD")(x=1.0)
    with pytest.raises(TypeError, match="GradientBalance has no setting 'shar'.*'share'"):
        GradientBalance(shar=1.0)


def test_arguments_go_over_the_config(cfg):
    assert StructuredDistiller(cfg, pool="abs").settings.pool == "abs"


@pytest.mark.parametrize("early", [True, False])
def test_a_method_of_one_s_own_has_keys(early):
    """A method registered before the config is made has keys; a later one has its defaults."""

    class Mine(Distiller):
        @dataclass(frozen=True)
        class Settings(Settings):
            scale: float = number(2.0, positive=True)

        def bind(self, shapes):
            self.shapes = shapes

        def forward(self, student, teacher, boxes=None):
            return {"loss_distill_mine": {k: self.settings.scale * x for k, x in student.items()}}

    cfg = get_cfg()
    if not early:
        add_skd_config(cfg)
    DISTILLER_REGISTRY.register(Mine)
    try:
        if early:
            add_skd_config(cfg)
            cfg.merge_from_list(["MODEL.DISTILLER.MINE.SCALE", "3.0"])
        cfg.MODEL.DISTILLER.NAME = "Mine"
        method = build_distiller(cfg)
        method.bind({"p2": (ShapeSpec(channels=1, stride=4),) * 2})
        loss = method({"p2": torch.ones(())}, {})["loss_distill_mine"]["p2"]
        assert loss == (3.0 if early else 2.0)
    finally:
        DISTILLER_REGISTRY._obj_map.pop("Mine")


@pytest.mark.parametrize(
    "preset,enabled,balanced",
    [("auto", None, True), ("one_stage_paper", None, False), ("one_stage_paper", True, True)],
)
def test_published_weights_are_not_balanced_in_a_combination_either(preset, enabled, balanced):
    method = StructuredDistiller(preset=preset)
    distiller = CombinedDistiller({"StructuredDistiller": (method, 1.0)})
    shape = ShapeSpec(channels=4, stride=8)
    distiller.bind_once({"p3": (shape, shape)}, GradientBalance(enabled=enabled))
    assert (distiller.balance is not None) == balanced
    assert method.settings.reduction == ("mean" if balanced else "sum")


def test_a_distiller_has_one_student():
    distiller = CombinedDistiller({"StructuredDistiller": (StructuredDistiller(), 1.0)})
    shape = ShapeSpec(channels=4, stride=8)
    distiller.bind_once({"p3": (shape, shape)}, GradientBalance())
    assert distiller.methods["StructuredDistiller"].settings.reduction == "mean"
    with pytest.raises(ValueError, match="CombinedDistiller is another model's distiller"):
        distiller.bind_once({"p3": (shape, shape)})


def test_a_balance_has_one_student():
    balance = GradientBalance(enabled=None)
    StructuredDistiller(preset="one_stage").bind_once(MAPS, balance)  # which does not use it
    StructuredDistiller().bind_once(MAPS, balance)
    second = StructuredDistiller()
    with pytest.raises(ValueError, match="GradientBalance is another model's balance"):
        second.bind_once(MAPS, balance)
    second.bind_once(MAPS, GradientBalance())


def test_balance_s_settings_are_checked():
    cfg = get_cfg()
    add_skd_config(cfg)
    cfg.MODEL.DISTILLER.BALANCE.PERIOD = 0
    with pytest.raises(ValueError, match="MODEL.DISTILLER.BALANCE.PERIOD is 0"):
        build_balance(cfg)
    with pytest.raises(ValueError, match="GradientBalance's period is 0"):
        GradientBalance(period=0)
    cfg.MODEL.DISTILLER.BALANCE.PERIOD, cfg.MODEL.DISTILLER.BALANCE.DECAY = 1, "linear"
    cfg.SOLVER.MAX_ITER = 0
    with pytest.raises(ValueError, match="MODEL.DISTILLER.BALANCE.DECAY is 'linear'"):
        build_balance(cfg)


MAPS = {"p3": (ShapeSpec(channels=8, stride=8),) * 2}


def bind(cfg):
    with written_as(YAML):
        build_distiller(cfg).bind_once(MAPS, build_balance(cfg))


def test_weights_without_effect_are_named(cfg, caplog):
    cfg.MODEL.DISTILLER.BALANCE.ENABLED = True
    cfg.MODEL.DISTILLER.STRUCTURED.WEIGHT_AT = 0.0
    cfg.MODEL.DISTILLER.PKD.WEIGHT = 3.0  # of another method
    bind(cfg)
    assert not caplog.records
    cfg.MODEL.DISTILLER.STRUCTURED.WEIGHT_AM = 1e-3
    bind(cfg)
    assert "MODEL.DISTILLER.STRUCTURED.WEIGHT_AM set, and without effect" in caplog.text
    cfg.MODEL.DISTILLER.COMBINE = [["StructuredDistiller", 1.0], ["PKD", 1.0]]
    bind(cfg)
    assert "WEIGHT_AM, MODEL.DISTILLER.PKD.WEIGHT set, and without effect" in caplog.text


def test_settings_of_a_balance_that_is_off_are_named(cfg, caplog):
    balance = cfg.MODEL.DISTILLER.BALANCE
    balance.ENABLED, balance.UNTIL = False, 1.0  # as it is without one
    bind(cfg)
    assert not caplog.records
    balance.ENABLED, balance.UNTIL, balance.SHARE = None, 0.5, 1.0
    cfg.MODEL.DISTILLER.STRUCTURED.PRESET = "two_stage"
    bind(cfg)
    assert "BALANCE.SHARE, MODEL.DISTILLER.BALANCE.UNTIL set, and without effect" in caplog.text


def test_both_are_named_in_a_lazy_config_and_in_python_too(caplog):
    with written_as(LAZY):
        StructuredDistiller(weight_am=1e-3).bind_once(MAPS, GradientBalance())
    assert "model.distiller.weight_am set, and without effect" in caplog.text
    off = GradientBalance(enabled=None, share=1.0, shares=(("structured_at", 0.1),))
    StructuredDistiller(preset="one_stage").bind_once(MAPS, off)
    assert "GradientBalance's share, GradientBalance's shares set, and without" in caplog.text
