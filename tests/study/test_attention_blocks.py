"""What --blocks of tools/visualize_attention.py is refused for."""

from types import SimpleNamespace

import pytest
import torch

from skd.study.visualize_attention import find_blocks


def test_blocks_of_no_model_are_refused():
    args = SimpleNamespace(model=[("a", "a.yaml", "zoo")], blocks="x.pth", teacher="b")
    with pytest.raises(ValueError, match=r"names \(a\), and it is 'b'"):
        find_blocks(args)


def test_a_file_without_a_teachers_blocks_is_refused(tmp_path):
    torch.save({"model": {"backbone.w": torch.zeros(1)}}, tmp_path / "x.pth")
    blocks = str(tmp_path / "x.pth")
    args = SimpleNamespace(model=[("a", "a.yaml", "zoo")], blocks=blocks, teacher="a")
    with pytest.raises(ValueError, match="has no blocks of a teacher"):
        find_blocks(args)
