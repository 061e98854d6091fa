"""Several real processes on this machine's CPU, over gloo."""

import pytest
import torch
from detectron2.engine import launch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from skd.engine import wrap_data_parallel
from tests.helpers import batch, distilling, tiny_config
from tests.processes import leave_together

pytestmark = pytest.mark.slow

IMAGES = 4


@META_ARCH_REGISTRY.register()
class MeanOfMaps(GeneralizedRCNN):
    """Its loss is a mean over images, without sampling, and reaches every parameter."""

    def forward(self, inputs):
        maps = self.backbone(self.preprocess_image(inputs).tensor)
        unused = sum(p.sum() for p in self.parameters() if p.requires_grad)
        return {"loss_own": sum(x.square().mean() for x in maps.values()) + 0 * unused}


HALF_SIZE = {"MODEL__TEACHER__HALF_SIZE": True}
PER_LEVEL = {"MODEL__DISTILLER__BALANCE__PER_LEVEL": True}


def build(teacher_files, norm, balance=False, **changes):
    """A model; with a balance, which measures the student's own loss too, it samples nothing."""
    cfg = distilling(
        tiny_config(fpn=32), teacher_files, "mean", balance=balance,
        MODEL__RESNETS__NORM="FrozenBN", MODEL__FPN__NORM="", MODEL__DISTILLER__EVERY=2,
        MODEL__DISTILLER__STRUCTURED__NON_LOCAL__NORM=norm, **changes,
    )  # fmt: skip
    if balance:
        cfg.MODEL.STUDENT.META_ARCHITECTURE = "MeanOfMaps"
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, parameter in model.distiller.named_parameters():
        if "non_local" in name and "norm" in name:  # it starts at zero, which would hide the block
            torch.nn.init.ones_(parameter)
    return model


def step(model, inputs, iteration=0):
    """One forward and backward of the distillation losses only: losses, gradients by name."""
    with EventStorage(iteration):
        torch.manual_seed(3)
        losses = model(inputs)
    # the detector's losses sample at random, so they get weight 0; their gradients stay, as
    # data-parallel training waits for every parameter's
    sum(v if "distill" in k else 0 * v for k, v in losses.items()).backward()
    module = getattr(model, "module", model)
    grads = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in losses.items() if "distill" in k}, grads


def worker(teacher_files, norm, balance, changes, out):
    torch.set_num_threads(1)
    torch.manual_seed(100 + comm.get_rank())  # to be overruled by rank 0's parameters
    model = wrap_data_parallel(
        build(teacher_files, norm, balance, **changes), broadcast_buffers=False
    )
    assert not model.find_unused_parameters
    mine = IMAGES // comm.get_world_size()
    inputs = batch(IMAGES)[comm.get_rank() * mine :][:mine]
    teacher = [p.data_ptr() for p in model.module.teacher.parameters()]
    reduced = [p.data_ptr() for p in model.parameters()]
    assert not set(teacher) & set(reduced)
    losses, grads = step(model, inputs)
    everyone = comm.gather(losses)
    # further steps, of which the first does not distil: none leaves a bucket unfinished
    step(model, inputs, 1), step(model, inputs, 2)
    if comm.is_main_process():
        mean = {k: torch.stack([x[k] for x in everyone]).mean(0) for k in losses}
        torch.save((mean, grads), out)
    leave_together()


@pytest.mark.parametrize(
    "processes,norm,balance,changes",
    [
        (2, "GN", False, {}), (2, "", False, {}), (2, "naiveSyncBN", False, {}), (4, "", False, {}),
        (2, "", True, {}), (2, "", True, HALF_SIZE), (2, "", True, PER_LEVEL),
    ],
)  # fmt: skip
def test_processes_equal_one_with_the_joint_batch(
    teacher_files, processes, norm, balance, changes, tmp_path
):
    out = str(tmp_path / "out.pth")
    launch(worker, processes, dist_url="auto", args=(teacher_files, norm, balance, changes, out))
    losses, grads = torch.load(out)
    expected_losses, expected_grads = step(
        build(teacher_files, norm, balance, **changes), batch(IMAGES)
    )
    assert losses.keys() == expected_losses.keys() and grads.keys() == expected_grads.keys()
    for name, value in expected_losses.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-7)
    assert any("teacher_non_local" in n for n in grads)
    for name, value in expected_grads.items():
        scale = max(value.abs().max().item(), 1e-6)
        torch.testing.assert_close(grads[name] / scale, value / scale, rtol=1e-3, atol=1e-4)
