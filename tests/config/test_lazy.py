"""A LazyConfig's student, as a file of its own."""

import os

import pytest
from detectron2.config import LazyConfig

from skd.config import lazy

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
    lazy.save_trained_student(cfg, "w.pth", str(out / "student.yaml"))
    assert os.listdir(out) == kept
    assert ("your own .py file and train.init_checkpoint=w.pth" in caplog.text) == (not kept)
