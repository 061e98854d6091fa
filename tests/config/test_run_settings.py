"""The settings of a run: declared once, read from both forms, not in the student's own config."""

import ast
import os

import pytest
from detectron2.config import get_cfg
from omegaconf import OmegaConf

from skd import add_skd_config, student_config
from skd.config import form_of, run_settings
from skd.config.naming import LAZY, YAML
from skd.engine import describe
from tests.helpers import ROOT
from tests.helpers import lazy_config as full_lazy_config
from tests.helpers import tiny_config

ADDED = ("accumulate", "skip_non_finite", "best_metric")


def lazy_config(**train):
    stock = {"output_dir": "out", "init_checkpoint": "", "device": "cpu", "max_iter": 5}
    periods = {"eval_period": 0, "checkpointer": {"period": 7, "max_to_keep": 100}}
    loader = {"train": {"dataset": {"names": "a"}, "total_batch_size": 4}}
    return OmegaConf.create({"train": {**stock, **periods, **train}, "dataloader": loader})


def test_a_setting_is_the_same_from_both_forms():
    yaml = tiny_config(SOLVER__IMS_PER_BATCH=4, SOLVER__ACCUMULATE=2, DATASETS__TRAIN=("a",))
    lazy = lazy_config(accumulate=2)
    for name, value in (("accumulate", 2), ("images_per_batch", 4), ("train_sets", ["a"])):
        assert run_settings.read(yaml)[name] == run_settings.read(lazy)[name] == value
    assert describe(yaml).accumulate == 2
    assert run_settings.read(lazy)["checkpoint_period"] == 7


def test_what_a_config_does_not_say_is_as_declared():
    values = run_settings.read(lazy_config())
    assert values["accumulate"] == 1 and values["expected"] == [] and values["test_sets"] is None
    assert "SOLVER.ACCUMULATE" not in student_config(tiny_config()).dump()
    assert run_settings.read(student_config(tiny_config()))["accumulate"] == 1
    with pytest.raises(ValueError, match="^train.max_iter is missing"):
        run_settings.read(lazy_config(max_iter=None))


@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_is_declared_and_taken_out_again(name):
    keys = {s.name: s for s in run_settings.settings() if YAML in s.added}
    assert set(keys) >= set(ADDED)
    cfg, key = tiny_config(), keys[name].yaml.split(".")[1]
    assert cfg.SOLVER[key] == keys[name].default
    assert key not in student_config(cfg).SOLVER
    cfg.SOLVER[key] = value = "bbox/AP" if name == "best_metric" else 3
    run_settings.remove_added(cfg, keep=True)
    assert cfg.SOLVER[key] == value and set(cfg.SOLVER) & {"ACCUMULATE", "BEST_METRIC"} <= {key}
    lazy = lazy_config(**{name: value, "device": "cuda"})
    run_settings.remove_added(lazy)
    assert name not in lazy.train and lazy.train.device == "cuda"


@pytest.mark.parametrize("key", ["SOLVER.EMA_DECAY", "DATASETS.UNLABELLED"])
def test_a_key_of_another_project_is_refused(key):
    cfg, (node, name) = get_cfg(), key.split(".")
    cfg[node][name] = "linear"
    with pytest.raises(ValueError, match=f"^{key} in this config is another project's"):
        add_skd_config(cfg)
    assert cfg[node][name] == "linear"


def test_a_resume_warns_of_what_changes_the_learning_only():
    learned = (
        "SOLVER.ACCUMULATE",
        "optimizer.lr",
        "TEST.PRECISE_BN.ENABLED",
        "INPUT.MIN_SIZE_TRAIN",
    )
    assert all(map(run_settings.is_learned, learned))
    for key in (
        "SOLVER.BEST_METRIC",
        "train.vis_period",
        "train.expected_results",
        "TEST.AUG.FLIP",
    ):
        assert not run_settings.is_learned(key)


def test_no_other_file_says_what_a_setting_is_called_in_a_lazy_config():
    paths = set(run_settings.keys_of(LAZY).values())
    assert len(paths) > 15
    package = os.path.join(ROOT, "projects", "skd")
    for folder, _, names in os.walk(package):
        for name in names:
            if name.endswith(".py") and name != "run_settings.py":
                with open(os.path.join(folder, name)) as f:
                    nodes = list(ast.walk(ast.parse(f.read())))
                said = {n.value for n in nodes if isinstance(n, ast.Constant)} & paths
                assert not said, (name, said)


def test_the_forms_have_the_same_verbs(tmp_path):
    lazy = full_lazy_config(tmp_path, "dataloader.train.mapper.image_format=RGB")
    for cfg in (tiny_config(INPUT__FORMAT="RGB"), lazy):
        form = form_of(cfg)
        form.check(cfg)
        form.check_training(cfg)
        assert form.image_format(cfg) == "RGB"
    del lazy.optimizer
    form.check(lazy)  # enough for an evaluation
    with pytest.raises(ValueError, match="^optimizer is missing"):
        form.check_training(lazy)
