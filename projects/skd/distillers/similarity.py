"""
How alike two feature maps are, whatever their channels mean: centered kernel alignment.

S. Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, equation
5, with a linear kernel and the positions of all images as examples.

Shape legend: N images, C channels, H x W positions of a feature map, L levels.
"""

from typing import Dict

import torch

from .balance import Maps
from .base import no_autocast
from .gradient_norms import mean_over_processes

# The most that a training looks at of a pair of maps. Each costs C_s^2 + C_s C_t + C_t^2 products:
# with 256 channels and 5 levels 4 billion in all, where a step of Mask R-CNN R50 has a trillion.
POSITIONS = 4096
# Maps with fewer positions than this on a side are alike anyway.
LEAST_SIDE = 3


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """
    Args:
        x, y: (N, C_x, H, W) and (N, C_y, H, W), of the one type that it is computed in.

    Returns:
        A scalar: 0 for maps that have nothing in common, 1 for those that are equal up to a
        rotation and a scale of their channels; 0 where one of them is constant. The fewer
        positions there are for each channel, the more alike are any two maps.
    """
    x, y = (_examples(t) for t in (x, y))
    cross = torch.linalg.matrix_norm(y.T @ x) ** 2
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return torch.where(own == 0, 0.0, cross / own)


def _examples(x: torch.Tensor) -> torch.Tensor:
    """Centered, (N H W, C), and together of length 1: the fourth powers would overflow fp32."""
    x = x.detach().movedim(1, -1).flatten(0, -2)
    centered = x - x.mean(0)
    length = torch.linalg.matrix_norm(centered)
    # a constant map's mean may be rounded: what that leaves is no map
    least = 10 * torch.finfo(x.dtype).eps * torch.linalg.matrix_norm(x)
    return torch.where(length <= least, 0.0, centered / length)


def on_grid(x: torch.Tensor) -> torch.Tensor:
    """
    Args:
        x: (N, C, H, W).

    Returns:
        A view (N, C, h, w) of every s-th row and column, with the smallest s for which N h w is
        not above ``POSITIONS``, or else h = w = 1. Nothing is drawn: the positions depend on the
        shape alone.
    """
    n, _, height, width = x.shape
    step = 1
    while step < max(height, width) and n * -(-height // step) * -(-width // step) > POSITIONS:
        step += 1
    return x[..., ::step, ::step]


class MapSimilarity:
    """
    How alike the student's and the teacher's maps are, as of the last measurement.

    Attributes:
        levels: :func:`linear_cka` at each level whose maps were large enough, scalars by name;
            means over the processes.
    """

    def __init__(self) -> None:
        self.levels: Dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def measure(self, student: Maps, teacher: Maps) -> None:
        """
        Measure, in fp32 and on a grid of positions, how alike maps are. The host waits for nothing.

        Args:
            student, teacher: L maps (N, C_s, H, W) and (N, C_t, H, W) by the same names, of equal
                sizes.
        """
        with no_autocast(student):
            found = {
                name: linear_cka(on_grid(x).float(), on_grid(teacher[name]).float())
                for name, x in student.items()
                if min(x.shape[-2:]) >= LEAST_SIDE
            }
        nothing = next(iter(student.values())).new_full((), torch.nan, dtype=torch.float32)
        values = _mean(torch.stack([found.get(name, nothing) for name in student]))
        for name, value in zip(student, values):
            if name in found:
                last = self.levels.get(name, torch.zeros_like(value)).to(value.device)
                # maps that are not finite are left out
                self.levels[name] = torch.where(value.isfinite(), value, last)

    @staticmethod
    def measure_nothing(levels: int, device: torch.device) -> None:
        """Take part in the other processes' :meth:`measure` of L levels, where it failed here."""
        _mean(torch.full((levels,), torch.nan, device=device))

    def scalars(self) -> Dict[str, torch.Tensor]:
        """What there is to see, by name: ``cka_<level>``."""
        return {f"cka_{name}": value for name, value in self.levels.items()}


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over the processes that have a finite value, (L,); not finite where none has."""
    counts = values.isfinite()
    sums, counts = mean_over_processes(torch.stack([torch.where(counts, values, 0.0), counts]))
    return sums / counts
