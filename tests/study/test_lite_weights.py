import pytest
import torch

from skd.study.fetch_lite_weights import _renamed


def test_tensors_are_renamed_in_order():
    state = {"stem.0.weight": torch.ones(2, 3), "stem.1.bias": torch.zeros(3)}
    model = {"conv_stem.weight": torch.empty(2, 3), "bn1.bias": torch.empty(3)}
    renamed = _renamed(state, model)
    assert list(renamed) == list(model) and renamed["conv_stem.weight"] is state["stem.0.weight"]


@pytest.mark.parametrize("name,shape", [("bn1.weight", 3), ("bn1.bias", 4)])
def test_another_model_is_refused(name, shape):
    with pytest.raises(ValueError, match="not those of timm's model"):
        _renamed({"a.bias": torch.zeros(3)}, {name: torch.zeros(shape)})
