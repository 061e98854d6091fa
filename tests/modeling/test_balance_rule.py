"""YAML, LazyConfig and Python balance the same distillers, and give SKD the same reduction."""

import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from omegaconf import OmegaConf

from skd import DISTILLER_REGISTRY, DistillRCNN, GradientBalance, detach
from skd.config import lazy_config
from skd.modeling.parts import distilling_parts
from skd.modeling.teacher import build_teacher
from tests.helpers import distilling, tiny_config

SWITCHES = {"default": None, "on": True, "off": False}
CASES = [  # method, preset, switch, whether it is balanced
    ("StructuredDistiller", "auto", "default", True),
    ("StructuredDistiller", "auto", "off", False),
    ("StructuredDistiller", "two_stage", "default", False),
    ("StructuredDistiller", "two_stage", "on", True),
    ("PKD", None, "default", True),
    ("PKD", None, "off", False),
]


def yaml_parts(cfg, method, preset, switch):
    # a base config's preset of a method that is not in use says nothing
    changes = ["MODEL.DISTILLER.NAME", method, "MODEL.DISTILLER.STRUCTURED.REDUCTION", None]
    changes += ["MODEL.DISTILLER.STRUCTURED.PRESET", preset or "two_stage"]
    cfg.merge_from_list([*changes, "MODEL.DISTILLER.BALANCE.ENABLED", SWITCHES[switch]])
    parts = distilling_parts(cfg)
    return {key: parts[key] for key in ("distiller", "balance")}


def lazy_parts(cfg, method, preset, switch):
    cfg = OmegaConf.create({"model": {}, "train": {"max_iter": 7}})
    lazy_config.distill(cfg, "teacher.yaml")
    target = DISTILLER_REGISTRY.get(method)
    options = [f"model.distiller._target_={target.__module__}.{method}"]
    options += [f"model.distiller.preset={preset}"] if preset else []
    options += {"default": [], "on": ["model.balance.enabled=True"], "off": ["model.balance=null"]}[
        switch
    ]
    model = LazyConfig.apply_overrides(cfg, options).model
    balance = instantiate(model.balance)
    assert balance is None or balance.max_iter == 7
    return {"distiller": instantiate(model.distiller), "balance": balance}


def python_parts(cfg, method, preset, switch):
    distiller = DISTILLER_REGISTRY.get(method)(**({"preset": preset} if preset else {}))
    balance = {"on": {"balance": GradientBalance()}, "off": {"balance": None}}
    return {"distiller": distiller, **balance.get(switch, {})}


@pytest.mark.parametrize("parts_of", [yaml_parts, lazy_parts, python_parts])
def test_one_rule(parts_of, teacher_files):
    student = build_model(tiny_config())
    config_file, weights = teacher_files
    teacher = build_teacher(config_file, weights=weights)
    for method, preset, switch, balanced in CASES:
        cfg = distilling(tiny_config(), teacher_files)
        parts = parts_of(cfg, method, preset, switch)
        distiller = DistillRCNN(student=student, teacher=teacher, **parts).distiller
        found = (distiller.balance is not None, getattr(distiller.settings, "reduction", None))
        reduction = ("mean" if balanced else "sum") if preset else None
        assert found == (balanced, reduction), (method, preset, switch)
        detach(student)


def test_a_config_of_an_earlier_run_remains_balanced():
    """It holds a GradientBalance without ``enabled``, and its checkpoints the state of one."""
    assert GradientBalance(max_iter=7).settings.enabled is True
