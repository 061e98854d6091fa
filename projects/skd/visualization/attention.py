"""Pictures of attention."""

import re
from typing import Any, Dict, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from ..distillers.attention import spatial_attention

MAX_TILE = 320  # pixels: five levels of a COCO image would make a picture of 4000 x 4000


def heat(attention: torch.Tensor, image: np.ndarray) -> np.ndarray:
    """
    Lay spatial attention over an image, from blue (least) to red (most).

    Args:
        attention: (H, W), any range.
        image: RGB, uint8 (height, width, 3).

    Returns:
        RGB, uint8 of the image's shape.
    """
    import cv2  # opencv is needed by whoever draws, not by ``import skd``

    a = attention.detach().float().cpu().numpy()
    a = (a - a.min()) / max(float(a.max() - a.min()), 1e-12)
    a = cv2.resize((a * 255).astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colors = cv2.applyColorMap(a, cv2.COLORMAP_JET)[:, :, ::-1]
    return cv2.addWeighted(image, 0.4, np.ascontiguousarray(colors), 0.6, 0)


def to_rgb(image: torch.Tensor, image_format: str) -> np.ndarray:
    """
    A model's input image (3, H, W) in BGR or RGB order, as RGB uint8 (H, W, 3); the mean of the
    channels as gray if they are not three.
    """
    if image.shape[0] != 3:
        image = image.float().mean(0, keepdim=True).expand(3, -1, -1)
    image = image.flip(0) if image_format == "BGR" else image
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy().astype(np.uint8))


def attention_over_image(features: torch.Tensor, stride: int, image: np.ndarray) -> np.ndarray:
    """
    Spatial attention of the first image's map, where it covers the unpadded image.

    Args:
        features: (N, C, H, W).
        stride: of the map.
        image: RGB, uint8 (height, width, 3).
    """
    h, w = (max(-(-side // stride), 1) for side in image.shape[:2])
    return heat(spatial_attention(features[:1].detach())[0, :h, :w], image)


def draw_attention(
    pixels: torch.Tensor,
    image_format: str,
    student: Dict[str, torch.Tensor],
    teacher: Dict[str, torch.Tensor],
    strides: Dict[str, int],
) -> torch.Tensor:
    """
    One row a level: the input, and over it the student's and the teacher's spatial attention.

    Args:
        pixels: the batch's first image (3, H, W), as the model gets it.
        image_format: its color order.
        student, teacher: feature maps (N, C, H, W) by level name.
        strides: of these levels.

    Returns:
        RGB, uint8 (3, levels * height, 3 * width), of the image's size or, if that is larger, of
        at most ``MAX_TILE`` pixels a side.
    """
    import cv2

    image = to_rgb(pixels, image_format)
    tiles = {
        name: [image]
        + [attention_over_image(x[name], strides[name], image) for x in (student, teacher)]
        for name in student
    }
    scale = min(1.0, MAX_TILE / max(image.shape[:2]))
    rows = [
        np.hstack(
            [cv2.resize(t, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for t in row]
        )
        for row in tiles.values()
    ]
    return torch.from_numpy(np.vstack(rows)).permute(2, 0, 1)


def non_local_blocks(state: Dict[str, torch.Tensor]) -> Dict[str, Dict[str, Dict[str, Any]]]:
    """
    The embeddings of the non-local blocks in a distilled checkpoint.

    Args:
        state: the checkpoint's ``"model"``.

    Returns:
        By "student" and "teacher", then by level: weight (k, C, 1, 1) and bias (k,) of "theta" and
        "phi". Empty for a checkpoint without.
    """
    pattern = re.compile(
        r"distiller\.(?:methods\.\w+\.)?levels\.(\w+)\.(student|teacher)_non_local\."
        r"(theta|phi)\.(weight|bias)"
    )
    found: Dict[str, Dict[str, Dict[str, Any]]] = {}
    for key, value in state.items():
        match = pattern.fullmatch(key)
        if match:
            level, side, layer, kind = match.groups()
            value = torch.as_tensor(value).float()
            found.setdefault(side, {}).setdefault(level, {}).setdefault(layer, {})[kind] = value
    return found


def non_local_response(
    features: torch.Tensor, position: Tuple[int, int], block: Optional[Dict[str, Any]] = None
) -> torch.Tensor:
    """
    How much one position of a map draws from every other: a row of the non-local block's affinity
    theta^T phi, with every position as a key. Without a block theta and phi are the identity.

    Args:
        features: (1, C, H, W).
        position: row and column.
        block: one level of :func:`non_local_blocks`.

    Returns:
        (H, W), of any sign.
    """
    theta = phi = features
    if block:
        theta, phi = (
            F.conv2d(features, block[name]["weight"], block[name]["bias"])
            for name in ("theta", "phi")
        )
    row, column = position
    return torch.einsum("k,khw->hw", theta[0, :, row, column], phi[0]) / phi[0, 0].numel()
