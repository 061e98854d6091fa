"""Small real detectors, their checkpoints, trainings and batches, for all tests."""

import os
import re

# before torch and the datasets' registration read them
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import LazyConfig, get_cfg  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints  # noqa: E402
from detectron2.utils.env import seed_all_rng  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

from skd import StructuredDistiller, add_skd_config, distill, student_config  # noqa: E402
from skd.config import merge_file  # noqa: E402
from skd.data.check import examine  # noqa: E402
from skd.engine import SKDTrainer  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHAPES_BASE = os.path.join(ROOT, "configs", "shapes", "Base-Shapes-Mask-RCNN.yaml")

# of the default method
TERMS = ["loss_distill_structured_am", "loss_distill_structured_at", "loss_distill_structured_nl"]

# for tests that run on either; those on a GPU are marked "gpu"
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ],
    ),
]

torch.set_num_threads(1)
logging.getLogger("detectron2").setLevel(logging.WARNING)


def tiny_config(kind="mask_rcnn", width=4, fpn=16, **changes):
    """
    A plain config of a tiny detector on the built-in dataset.

    Args:
        kind: "mask_rcnn", "faster_rcnn" or "retinanet".
        width: of the ResNet's bottlenecks.
        fpn: the FPN's channels.
        changes: further keys, with "__" for dots.
    """
    cfg = get_cfg()
    add_skd_config(cfg)
    cfg.merge_from_file(SHAPES_BASE)
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = width
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 4 * width
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.FPN.OUT_CHANNELS = fpn
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.MASK_ON = kind == "mask_rcnn"
    if kind == "retinanet":
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.RETINANET.NUM_CLASSES = 6
        cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.BASE_LR = 0.01
    cfg.SOLVER.MAX_ITER = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("tiny_train",), ("tiny_val",)
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def read_config(path, opts=()):
    """A YAML config of the repository, and options as on the command line."""
    cfg = get_cfg()
    add_skd_config(cfg)
    merge_file(cfg, str(path))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return cfg


# a small Mask R-CNN on the built-in dataset, as a LazyConfig
LAZY = """
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.evaluation import COCOEvaluator

config = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, optimizer, train = config.model, config.optimizer, config.train
lr_multiplier, dataloader = config.lr_multiplier, config.dataloader
model.backbone.bottom_up.stages.depth = 18
del model.backbone.bottom_up.stages.stride_in_1x1
model.backbone.bottom_up.stages.norm = "BN"
model.backbone.bottom_up.stem.norm = "BN"
model.backbone.bottom_up.freeze_at = 0
model.backbone.out_channels = 16
model.roi_heads.num_classes = 6
model.roi_heads.box_head.fc_dims = [32]
model.roi_heads.box_predictor.input_shape.channels = 32
for size in (model.roi_heads.box_head.input_shape, model.roi_heads.mask_head.input_shape):
    size.channels = 16
model.proposal_generator.head.in_channels = 16
model.roi_heads.mask_head.conv_dims = [16, 16]
dataloader.train.dataset.names = "skd_shapes_train"
dataloader.train.mapper.augmentations = []
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = 0
dataloader.test.dataset.names = "skd_shapes_val"
dataloader.test.mapper.augmentations = []
dataloader.test.num_workers = 0
dataloader.evaluator = L(COCOEvaluator)(dataset_name="skd_shapes_val")
optimizer.lr = 1e-3
train.device = "cpu"
train.max_iter = 3
train.eval_period = 0
train.init_checkpoint = ""
"""


def lazy_config(tmp_path, *options):
    """:data:`LAZY` on the tiny dataset, with options as on the command line."""
    path = tmp_path / "student.py"
    path.write_text(LAZY.replace("skd_shapes", "tiny"))
    output = f"train.output_dir={tmp_path / 'lazy'}"
    return LazyConfig.apply_overrides(LazyConfig.load(str(path)), [output, *options])


def distilling(student_cfg, teacher_files, reduction="sum", balance=False, **changes):
    """
    The student's config, with a teacher from :func:`save_detector`, and the terms' weights as the
    papers have them unless ``balance``, from the first iteration to the last.
    """
    cfg = student_cfg.clone()
    distill(cfg, *teacher_files)
    cfg.MODEL.DISTILLER.STRUCTURED.REDUCTION = reduction
    cfg.MODEL.DISTILLER.BALANCE.ENABLED, cfg.MODEL.DISTILLER.BALANCE.UNTIL = balance, 1.0
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def save_detector(cfg, folder, seed=0):
    """Build an untrained detector and save it: its config file and its checkpoint."""
    folder = str(folder)
    os.makedirs(folder, exist_ok=True)
    cfg = student_config(cfg)
    torch.manual_seed(seed)
    model = build_model(cfg)
    # running statistics of an untrained net are far from its activations: take real ones
    model.backbone.train()
    with torch.no_grad():
        model.backbone(torch.randn(4, 3, 128, 128))
    DetectionCheckpointer(model, folder).save("model_final")
    path = os.path.join(folder, "config.yaml")
    with open(path, "w") as f:
        f.write(cfg.dump())
    return path, os.path.join(folder, "model_final.pth")


class Balanced(torch.nn.Module):
    """What the log and the record ask of a model that distils; without a balance if that is off."""

    _skd_student = torch.nn.Module  # as of a class that distils

    def __init__(self, balance=None, method=StructuredDistiller):
        super().__init__()
        self.distiller = method()
        self.distiller.balance = balance


def train_until(cfg, folder, until=None, resume=False, trainer=SKDTrainer):
    """
    Train what a YAML config describes, as train_net.py does, in this process.

    Args:
        folder: of the run; with ``resume`` it goes on there.
        until: stop after so many iterations instead of SOLVER.MAX_ITER.

    Returns:
        The trainer.
    """
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    os.makedirs(folder, exist_ok=True)
    seed_all_rng(cfg.SEED if cfg.SEED >= 0 else None)
    trainer = trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.max_iter = until or trainer.max_iter
    trainer.train()
    return trainer


def check_resume(cfg, folder, until):
    """
    Hold that a training in two parts gives the very weights of a training in one piece.

    Args:
        until: iterations of the first part.

    Returns:
        These weights, by name.
    """
    whole = train_until(cfg, folder / "whole").model.state_dict()
    train_until(cfg, folder / "parts", until=until)
    resumed = train_until(cfg, folder / "parts", resume=True).model.state_dict()
    assert not differing(whole, resumed)
    return resumed


def step(model, inputs=None, iteration=0):
    """
    One forward and backward pass; the detector samples the same proposals each time, and functions
    in TorchScript run as in a training on a CPU: the first one in a process as those after it.

    Returns:
        The losses, and the gradients, by name.
    """
    model.zero_grad()
    with EventStorage(iteration), torch.jit.optimized_execution(False):
        torch.manual_seed(3)
        losses = model(inputs or batch())
        sum(losses.values()).backward()
    module = getattr(model, "module", model)
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def weights(folder):
    """The weights of a run that has ended, by name."""
    return torch.load(os.path.join(folder, "model_final.pth"))["model"]


def take(loader, n):
    """The first batches of a loader."""
    iterator = iter(loader)
    return [next(iterator) for _ in range(n)]


def differing(a, b):
    """The names of what is not the same, to the bit, in two state dicts."""
    assert a.keys() == b.keys()
    return [name for name, value in a.items() if not torch.equal(value, b[name])]


def batch(n=2, height=96, width=128, seed=0, classes=6):
    """A training batch of random images with two objects each, for any kind of detector."""
    rng = np.random.default_rng(seed)
    inputs = []
    for _ in range(n):
        boxes, masks = [], torch.zeros(2, height, width, dtype=torch.bool)
        for i in range(2):
            x, y = (int(v) for v in rng.integers(0, 40, 2))
            w, h = (int(v) for v in rng.integers(16, 48, 2))
            boxes.append([x, y, x + w, y + h])
            masks[i, y : y + h, x : x + w] = True
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.gt_classes = torch.as_tensor(rng.integers(0, classes, 2))
        instances.gt_masks = BitMasks(masks)
        corners = torch.tensor([(b[0], b[1], 2) for b in boxes], dtype=torch.float32)
        instances.gt_keypoints = Keypoints(corners[:, None].repeat(1, 17, 1) + 1)
        pixels = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
        image = {"image": torch.as_tensor(pixels), "instances": instances}
        image["sem_seg"] = masks.any(0).long()
        inputs.append({**image, "height": height, "width": width})
    return inputs


def problems_of(json_file, images):
    """All that the check says of a dataset, with every image decoded."""
    return examine(json_file, images, read_images=True).problems


def read(name):
    """The text of one of the repository's files."""
    with open(os.path.join(ROOT, name)) as f:
        return f.read()


def python_blocks(name):
    """The blocks of Python in one of the documents."""
    return re.findall(r"```python\n(.*?)```", read(name), re.S)
