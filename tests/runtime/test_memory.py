"""What is said of a training's memory."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from skd.runtime import memory
from tests.helpers import DEVICES


def written(device):
    """The values that a training of 5 iterations writes, every 2, by iteration."""
    hook = memory.PeakMemory(torch.device(device), 2)
    with EventStorage() as storage:
        for i in range(5):
            hook.trainer = SimpleNamespace(storage=storage, iter=i, max_iter=5)
            storage.iter = i
            hook.after_step()
        history = storage.histories().get("peak_memory_mb")
        return {} if history is None else {i: value for value, i in history.values()}


@pytest.mark.parametrize("device", DEVICES)
def test_the_most_up_to_now_in_mb(device):
    if memory.peak_resident() is None:
        pytest.skip("this system has no /proc")
    if device == "cuda":
        torch.cuda.init()  # or there is no device whose peak could be reset
        torch.cuda.reset_peak_memory_stats()
    before = written(device)[1]
    held = torch.ones(2**26, device=device)  # 256 MB
    held = held[:1].clone()  # they are free again, and stay the most that there was
    values = written(device)
    assert list(values) == [1, 3, 4] and values[1] <= values[4] < before + 1024 and held.any()
    if device == "cuda":  # else the process may have had as much before
        assert before + 250 <= values[1]


def test_a_system_that_does_not_say(monkeypatch):
    monkeypatch.setattr(memory, "peak_resident", lambda: None)
    assert written("cpu") == {}
