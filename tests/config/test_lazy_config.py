"""A LazyConfig's verbs, which are YAML's, and its student as a file of its own."""

import inspect
import os

import pytest
from detectron2.config import LazyConfig

from skd.config import lazy_config, yaml_config

OWN = """
import torch
from detectron2.config import LazyCall as L

def make(width):
    return torch.nn.Conv2d(3, width, 1)

model = L(MAKE)(width=8)
train = dict(init_checkpoint="")
"""


@pytest.mark.parametrize("made_by,kept", [("make", []), ("torch.nn.Linear", ["student.yaml"])])
def test_a_student_that_no_file_can_hold_is_not_written(made_by, kept, tmp_path, caplog):
    (tmp_path / "own.py").write_text(OWN.replace("MAKE", made_by))
    cfg, out = LazyConfig.load(str(tmp_path / "own.py")), tmp_path / "out"
    out.mkdir()
    lazy_config.save_trained_student(cfg, "w.pth", str(out / "student.yaml"))
    assert os.listdir(out) == kept
    assert ("your own .py file and train.init_checkpoint=w.pth" in caplog.text) == (not kept)


def verbs(form):
    """What a module offers, by name."""
    functions = inspect.getmembers(form, inspect.isfunction)
    return {n for n, f in functions if f.__module__ == form.__name__ and n[0] != "_"}


def test_both_forms_have_the_same_verbs():
    """form_of(cfg).VERB is for either form; what one has besides is for who knows the form."""
    yaml, lazy = verbs(yaml_config), verbs(lazy_config)
    assert yaml - lazy == {"merge_file", "merge_options", "is_distilling_class"}
    assert lazy - yaml == {"allow", "check_allowed", "override_values", "made_by"}
    for name in yaml & lazy:
        both = (getattr(form, name) for form in (yaml_config, lazy_config))
        given = [list(inspect.signature(verb).parameters) for verb in both]
        assert given[0][: len(given[1])] == given[1], name
