"""Pictures of attention."""

import numpy as np
import pytest
import torch

from skd.visualization.attention import attention_over_image, draw_attention, heat, to_rgb


def test_heat_is_red_where_attention_is_and_blue_where_not():
    attention = torch.zeros(2, 2)
    attention[0, 1] = 7.0
    image = heat(attention, np.zeros((20, 20, 3), np.uint8)).astype(int)
    assert image[2, 17, 0] > image[2, 17, 2] + 50  # RGB
    assert image[17, 2, 2] > image[17, 2, 0] + 50


def test_padding_is_left_out():
    features = torch.zeros(1, 3, 4, 4)
    features[..., 3] = 100.0  # beyond the image of 24 pixels at stride 8
    image = np.zeros((24, 24, 3), np.uint8)
    assert np.ptp(attention_over_image(features, 8, image)) == np.ptp(
        heat(torch.zeros(3, 3), image)
    )


def test_rgb_of_both_color_orders():
    image = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    assert to_rgb(image, "RGB")[0, 0].tolist() == [1, 2, 3]
    assert to_rgb(image, "BGR")[0, 0].tolist() == [3, 2, 1]


@pytest.mark.parametrize("size,tile", [((96, 128), (96, 128)), ((640, 960), (213, 320))])
def test_large_images_give_small_pictures(size, tile):
    maps = {"p3": torch.rand(2, 4, size[0] // 8, size[1] // 8)}
    pixels = torch.zeros(3, *size, dtype=torch.uint8)
    picture = draw_attention(pixels, "BGR", maps, maps, {"p3": 8})
    assert picture.shape == (3, tile[0], 3 * tile[1]) and picture.dtype == torch.uint8
