import numpy as np
import pytest
import torch
from detectron2.data import build_detection_test_loader

from skd.evaluation import CORRUPTIONS, CorruptedMapper, corrupt, mean_performance
from tests.helpers import tiny_config

pytest.importorskip("imagecorruptions")


def picture(height=48, width=64):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3, y * 4, (x + y) * 2], -1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_corruption_changes_the_image_more_with_severity_and_repeats(corruption):
    image = picture()
    before = np.random.get_state()[1].copy()
    weak, strong = (corrupt(image, corruption, s, (1, 2)) for s in (1, 5))
    assert weak.shape == image.shape and weak.dtype == np.uint8
    error = [np.abs(x.astype(float) - image).mean() for x in (weak, strong)]
    # elastic_transform is not ordered by this measure
    assert error[0] > 0 and (error[1] > error[0] or corruption == "elastic_transform")
    assert np.array_equal(strong, corrupt(image, corruption, 5, (1, 2)))
    assert np.array_equal(before, np.random.get_state()[1])
    assert np.array_equal(image, picture())


def test_another_seed_is_another_noise():
    a, b = (corrupt(picture(), "gaussian_noise", 3, (seed,)) for seed in (0, 1))
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (33, 20)])
def test_small_images_keep_their_size(size):
    assert corrupt(picture(*size), "fog", 3, (0,)).shape == (*size, 3)


@pytest.mark.parametrize("corruption,severity", [("rain", 1), ("fog", 0), ("fog", 6)])
def test_unknown_corruptions_are_errors(corruption, severity):
    with pytest.raises(ValueError, match="corruptions are gaussian_noise.* severities 1 to 5"):
        corrupt(picture(), corruption, severity, (0,))


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_workers_give_the_images_the_main_process_gives(shapes, order):
    cfg = tiny_config(INPUT__FORMAT=order)
    mapper = CorruptedMapper([cfg], "impulse_noise", 2, seed=4)
    images = []
    for workers in (0, 2):
        loader = build_detection_test_loader(cfg, "tiny_val", mapper=mapper, num_workers=workers)
        images.append({x["image_id"]: x["image"] for ((x,),) in loader})
    assert images[0].keys() == images[1].keys() and len(images[0]) == 8
    assert all(torch.equal(images[0][k], images[1][k]) for k in images[0])


def test_models_see_the_same_corruption_in_their_own_size_and_order(shapes, monkeypatch):
    cfgs = [tiny_config(INPUT__FORMAT="BGR"), tiny_config(INPUT__FORMAT="RGB")]
    cfgs.append(tiny_config(INPUT__FORMAT="RGB", INPUT__MIN_SIZE_TEST=32))
    calls = []
    monkeypatch.setattr(
        "skd.evaluation.robustness.corrupt", lambda *a: calls.append(a) or corrupt(*a)
    )
    mapper = CorruptedMapper(cfgs, "gaussian_noise", 3)
    loader = build_detection_test_loader(cfgs[0], "tiny_val", mapper=mapper)
    bgr, rgb, small = next(iter(loader))[0]
    assert len(calls) == 1
    assert torch.equal(bgr["image"], rgb["image"].flip(0))
    assert min(small["image"].shape[1:]) == 32 < min(rgb["image"].shape[1:])
    assert bgr["file_name"] == small["file_name"] and "annotations" not in bgr


def test_mean_performance_by_hand():
    corrupted = {"fog": {1: 30.0, 2: 10.0}, "snow": {1: 10.0}}
    assert mean_performance(30.0, corrupted) == {"mPC": 15.0, "rPC": 50.0}
    assert np.isnan(mean_performance(0.0, corrupted)["rPC"])
