"""What is measured: the loss, a training step, inference, the teacher's forward."""

import itertools
import math
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple
from unittest import mock

import torch
from detectron2 import model_zoo
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ...config import distill, read_config, student_config
from ...distillers import StructuredDistiller
from ...distillers.structured import fused_residual
from ...modeling.teacher import build_teacher
from ...runtime.unlabelled import MARK
from . import literal
from .measure import flops, launches, no_tf32

ZOO = "COCO-InstanceSegmentation/mask_rcnn_R_{}_FPN_{}x.yaml"
LEVELS = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}


class Loss:
    """The loss on random maps, fused and literally, with the same layers."""

    def __init__(
        self,
        device: str,
        images: int = 2,
        size: Tuple[int, int] = (800, 1344),
        channels: int = 256,
        levels: Dict[str, int] = LEVELS,
        key_stride: Optional[Dict[int, int]] = None,
    ):
        """``key_stride``: by stride, in place of the preset's."""
        torch.manual_seed(0)
        self.distiller = StructuredDistiller(preset="two_stage", key_stride=key_stride)
        shape = {n: ShapeSpec(channels=channels, stride=s) for n, s in levels.items()}
        self.distiller.bind({name: (spec, spec) for name, spec in shape.items()})
        for level in self.distiller.levels.values():
            for block in (level.student_non_local, level.teacher_non_local):
                torch.nn.init.uniform_(block.norm.weight)  # at zero it would hide the block
        self.distiller.to(device)
        self._peer = None

        def maps():
            return {
                name: torch.randn(images, channels, *(math.ceil(v / s) for v in size)).to(device)
                for name, s in levels.items()
            }

        self.teacher = maps()
        self.student = {name: x.requires_grad_() for name, x in maps().items()}

    def _step(self, loss: torch.Tensor) -> torch.Tensor:
        for x in (*self.student.values(), *self.distiller.parameters()):
            x.grad = None
        loss.backward()
        return loss.detach()

    def fused(self) -> torch.Tensor:
        terms = self.distiller(self.student, self.teacher)
        return self._step(sum(x for by_level in terms.values() for x in by_level.values()))

    def literal(self) -> torch.Tensor:
        return self._step(literal.loss(self.distiller, self.student, self.teacher))

    def peer(self) -> torch.Tensor:
        """The loss by MMRazor, with the same layers."""
        if self._peer is None:
            from .peer import Peer

            self._peer = Peer(self.distiller)
        return self._step(self._peer(self.student, self.teacher))

    def check(self, reference: Callable[[], torch.Tensor], rtol: float = 1e-4) -> Dict[str, int]:
        """
        Raise AssertionError unless :meth:`fused` and another give the same value, within ``rtol``,
        and gradients.

        Returns:
            How many operations each took.
        """
        results, counts = [], {}
        for name, function in (("flops", self.fused), ("flops_reference", reference)):
            with no_tf32():
                counts[name], value = flops(function)
            grads = {n: x.grad for n, x in self.student.items()}
            grads.update({n: p.grad for n, p in self.distiller.named_parameters()})
            results.append((value, grads))
        (value, grads), (expected, expected_grads) = results
        torch.testing.assert_close(value, expected, rtol=rtol, atol=0)
        # Norms are compared: rounding may make another of two equal keys the larger one in a pool,
        # and some gradients, like that of a bias before batch norm, are zero but for rounding.
        floor = 1e-4 * max(g.norm() for n, g in expected_grads.items() if n not in LEVELS)
        for name, value in expected_grads.items():
            norm = value.norm() if name in LEVELS else torch.maximum(value.norm(), floor)
            error = (grads[name] - value).norm() / norm
            assert error < 1e-2, f"gradient of {name} differs by {error:.1e} of its norm"
        return counts

    def launches(self) -> Tuple[int, int]:
        """Operations of :meth:`fused` and :meth:`literal`, in chunks as on a GPU also on a CPU."""
        on_gpu = fused_residual.CHUNK_ELEMENTS["cuda"]
        with mock.patch.dict(fused_residual.CHUNK_ELEMENTS, cpu=on_gpu):
            return launches(self.fused), launches(self.literal)

    def map_bytes(self) -> int:
        """Both networks' maps read once, and the gradient written: the least there is to move."""
        return 3 * sum(x.numel() * x.element_size() for x in self.student.values())


def inputs(images: int, size: Tuple[int, int]) -> List[Dict[str, Any]]:
    """Random images with ten objects each."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    batch = []
    for _ in range(images):
        corner = torch.rand(10, 2, generator=generator) * torch.tensor([width, height]) * 0.6
        extent = (0.05 + 0.3 * torch.rand(10, 2, generator=generator)) * min(size)
        boxes = torch.cat([corner, corner + extent], dim=1)
        masks = torch.zeros(10, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist()):
            mask[y0:y1, x0:x1] = True
        instances = Instances(
            size,
            gt_boxes=Boxes(boxes),
            gt_classes=torch.randint(0, 80, (10,), generator=generator),
            gt_masks=BitMasks(masks),
        )
        image = torch.randint(0, 256, (3, height, width), generator=generator).float()
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def unlabelled(batch: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The images without their labels."""
    return [{**{k: x[k] for k in ("image", "height", "width")}, MARK: []} for x in batch]


def mask_rcnn(
    device: str,
    precision: str = "fp32",
    every: int = 1,
    side_stream: bool = False,
    half_size: bool = False,
    heads: Sequence[str] = (),
    method: str = "StructuredDistiller",
) -> Tuple[nn.Module, nn.Module]:
    """
    Mask R-CNN R50 <- R101 of the zoo, and the baseline: R50 by itself, with the same weights.
    Untrained, because speed does not depend on them.
    """
    cfg = read_config(model_zoo.get_config_file(ZOO.format(50, 1)))
    distill(cfg, ZOO.format(101, 3))
    cfg.MODEL.DEVICE = device
    cfg.MODEL.TEACHER.RANDOM_WEIGHTS = True
    cfg.MODEL.TEACHER.PRECISION = precision
    cfg.MODEL.TEACHER.SIDE_STREAM = side_stream
    cfg.MODEL.TEACHER.HALF_SIZE = half_size
    cfg.MODEL.DISTILLER.EVERY = every
    cfg.MODEL.DISTILLER.NAME = method
    cfg.MODEL.DISTILLER.HEADS.NAMES = list(heads)
    # as after the first iterations: from then on BALANCE measures gradients in every 20th only
    cfg.MODEL.DISTILLER.BALANCE.BURN_IN = 1
    torch.manual_seed(0)
    model, baseline = build_model(cfg), build_model(student_config(cfg))
    _tame(model), _tame(model.teacher)
    baseline.load_state_dict(model.state_dict(), strict=False)  # all but distiller.*
    return model, baseline


@torch.no_grad()
def _tame(model: nn.Module) -> None:
    """Untrained, a ResNet's maps grow from block to block, beyond fp16's largest number."""
    for module in model.modules():
        if isinstance(module, BottleneckBlock):
            module.conv3.weight.mul_(0.1)


def training_step(
    model,
    batch: List[Dict[str, Any]],
    amp: bool = False,
    iterations: Optional[Iterator[int]] = None,
) -> Callable[[], None]:
    """A step of SGD. The first one, a warm-up, is iteration 1, or the first of those given."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9)
    model.train()
    iterations = iterations or itertools.count(1)

    def step():
        with (
            EventStorage(next(iterations)),
            torch.autocast("cuda", dtype=torch.float16, enabled=amp),
        ):
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def teacher_forward(device: str, batch: List[Dict[str, Any]], **options) -> Callable[[], Any]:
    """R101 of the zoo, plain but for these options."""
    torch.manual_seed(0)  # of the weights
    options = {"fold_bn": False, "channels_last": False, **options}
    teacher = build_teacher(ZOO.format(101, 3), random_weights=True, **options).to(device)
    _tame(teacher)
    return lambda: teacher(batch, "BGR")


def check_teacher(measured: Callable[[], Any], reference: Callable[[], Any]) -> None:
    """Raise AssertionError unless two teachers' maps are equal, but for half precision."""
    maps, expected = measured(), reference()
    for name, value in expected.items():
        error = (maps[name].float() - value.float()).abs().max() / value.float().abs().max()
        assert error < 5e-2, f"{name} differs by {error:.1e} of its largest value"
