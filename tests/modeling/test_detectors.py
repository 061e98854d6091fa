"""Every kind of detector in docs/detectors.md, from its own leaf config, at a tiny width."""

import os
import re

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from skd import build_teacher, student_config
from skd.config import is_lazy_file
from skd.modeling.state import pairs_of
from tests.helpers import ROOT, TERMS, batch, read, read_config

TINY = [
    "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu",
    "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.NUM_GROUPS", 1, "MODEL.RESNETS.NORM", "BN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(16, 16)",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.RETINANET.NUM_CONVS", 1,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 100, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "TEST.DETECTIONS_PER_IMAGE", 5,
]  # fmt: skip
WIDTH = "MODEL.RESNETS.WIDTH_PER_GROUP", "MODEL.RESNETS.RES2_OUT_CHANNELS"
STUDENT = [*TINY, WIDTH[0], 4, WIDTH[1], 16, "MODEL.FPN.OUT_CHANNELS", 16]
TEACHER = [*TINY, WIDTH[0], 6, WIDTH[1], 24, "MODEL.FPN.OUT_CHANNELS", 24]

LAZY_TEACHER = [f"model.backbone.bottom_up.{k}.norm=BN" for k in ("stem", "stages")]


def tiny_rcnn(model, channels=16):
    """Narrow the FPN and the heads of a LazyConfig's (Cascade) Mask R-CNN."""
    model.backbone.out_channels = channels
    model.proposal_generator.head.in_channels = channels
    model.proposal_generator.pre_nms_topk = model.proposal_generator.post_nms_topk = (50, 50)
    heads = model.roi_heads
    heads.batch_size_per_image = 16
    heads.mask_head.input_shape.channels = channels
    heads.mask_head.conv_dims = [8, 8]
    for head in heads.get("box_heads") or [heads.box_head]:
        head.input_shape.channels = channels
        head.conv_dims, head.fc_dims = [], [32]
    for predictor in heads.get("box_predictors") or [heads.box_predictor]:
        predictor.input_shape.channels = 32


def tiny_r18(model):
    stages, stem = model.backbone.bottom_up.stages, model.backbone.bottom_up.stem
    stages.depth = 18
    del stages.stride_in_1x1
    stages.norm = stem.norm = model.backbone.norm = "BN"
    model.backbone.bottom_up.freeze_at = 0
    if "roi_heads" in model:
        tiny_rcnn(model)


def tiny_regnet(model):
    model.backbone.bottom_up.update(
        depth=8, w_a=16.0, w_0=8, w_m=2.0, group_width=8, stem_width=8, norm="BN"
    )
    tiny_rcnn(model)


def tiny_vitdet(model):
    model.backbone.square_pad = 128
    model.backbone.net.update(
        img_size=128, embed_dim=16, depth=2, num_heads=2, window_size=4, window_block_indexes=[0]
    )
    tiny_rcnn(model)


def tiny_swin(model):
    model.backbone.square_pad = 128
    model.backbone.bottom_up.update(depths=[1, 1, 1, 1], embed_dim=8, num_heads=[1, 2, 4, 8])
    tiny_rcnn(model)


# kind: leaf, tiny student and tiny teacher if these are LazyConfigs
KINDS = {
    "Faster R-CNN FPN": ("COCO-Detection/skd_faster_rcnn_R_50_FPN_1x.yaml",),
    "Faster R-CNN C4": ("COCO-Detection/skd_faster_rcnn_R_50_C4_1x.yaml",),
    "Faster R-CNN DC5": ("COCO-Detection/skd_faster_rcnn_R_50_DC5_1x.yaml",),
    "Cascade R-CNN": ("COCO-Detection/skd_cascade_rcnn_R_50_FPN_1x.yaml",),
    "Mask R-CNN": ("COCO-InstanceSegmentation/skd_mask_rcnn_R_50_FPN_1x.yaml",),
    "Cascade Mask R-CNN": ("COCO-InstanceSegmentation/skd_cascade_mask_rcnn_R_50_FPN_1x.yaml",),
    "Keypoint R-CNN": ("COCO-Keypoints/skd_keypoint_rcnn_R_50_FPN_1x.yaml",),
    "Panoptic FPN": ("COCO-PanopticSegmentation/skd_panoptic_fpn_R_50_1x.yaml",),
    "PointRend Mask R-CNN": ("COCO-InstanceSegmentation/skd_pointrend_R_50_FPN_1x.yaml",),
    "RetinaNet": ("COCO-Detection/skd_retinanet_R_50_FPN_1x.yaml",),
    "FCOS": ("COCO-Detection/skd_fcos_R_50_FPN_1x.py", tiny_r18),
    "RPN only": ("COCO-Detection/skd_rpn_R_50_FPN_1x.yaml",),
    "Mask R-CNN, RegNet": (
        "COCO-InstanceSegmentation/skd_mask_rcnn_regnety_4gf_dds_FPN_1x.py",
        tiny_regnet,
    ),
    "Mask R-CNN, ViTDet": (
        "COCO-InstanceSegmentation/skd_mask_rcnn_vitdet_b_100ep.py",
        tiny_vitdet,
        tiny_vitdet,
    ),
    "Cascade Mask R-CNN, Swin": (
        "COCO-InstanceSegmentation/skd_cascade_mask_rcnn_swin_b_in21k_50ep.py",
        tiny_swin,
        tiny_swin,
    ),
    "Mask R-CNN, MobileNetV3 (timm)": (
        "COCO-InstanceSegmentation/skd_mask_rcnn_MobileNetV3_FPN_1x.yaml",
    ),
}


def without_p6(model):
    tiny_r18(model)
    model.backbone.top_block = None
    model.proposal_generator.in_features = ["p2", "p3", "p4", "p5"]
    generator = model.proposal_generator.anchor_generator
    generator.sizes, generator.strides = [[32], [64], [128], [256]], [4, 8, 16, 32]


FASTER, MASK = (
    "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_",
)
RETINANET = KINDS["RetinaNet"][0]
P2_P5, P3_P6 = ["p2", "p3", "p4", "p5"], ["p3", "p4", "p5", "p6"]

# pair: levels, leaf, and what differs from it: options of a YAML config, or functions on a
# LazyConfig's student and teacher
PAIRS = {
    "Faster R-CNN R18 <- Faster R-CNN R101": (
        [*P2_P5, "p6"],
        "COCO-Detection/skd_faster_rcnn_R_18_FPN_1x.yaml",
        [WIDTH[1], 64],
    ),
    "RetinaNet <- Faster R-CNN R101": (P3_P6, RETINANET, ["MODEL.TEACHER.CONFIG_FILE", FASTER]),
    "RetinaNet <- Mask R-CNN X101": (
        P3_P6,
        RETINANET,
        ["MODEL.TEACHER.CONFIG_FILE", MASK + "X_101_32x8d_FPN_3x.yaml"],
    ),
    "RetinaNet <- FCOS": (
        [*P3_P6, "p7"],
        RETINANET,
        ["MODEL.TEACHER.CONFIG_FILE", "COCO-Detection/fcos_R_50_FPN_1x.py"],
    ),
    "FCOS <- Mask R-CNN R101": (P3_P6, *KINDS["FCOS"]),
    "Faster R-CNN C4 <- Faster R-CNN FPN": (
        ["res4"],
        KINDS["Faster R-CNN C4"][0],
        ["MODEL.TEACHER.CONFIG_FILE", FASTER],
    ),
    "Mask R-CNN R50 <- ViTDet-B": (
        [*P2_P5, "p6"],
        "COCO-InstanceSegmentation/skd_mask_rcnn_R_50_FPN_vitdet_b_100ep.py",
        tiny_r18,
        tiny_vitdet,
    ),
    "Mask R-CNN without P6 <- Mask R-CNN R101": (
        P2_P5,
        "COCO-InstanceSegmentation/skd_mask_rcnn_R_50_FPN_vitdet_b_100ep.py",
        without_p6,
        MASK + "R_101_FPN_3x.yaml",
    ),
    "Mask R-CNN of 6 classes <- Mask R-CNN of 80": (
        [*P2_P5, "p6"],
        KINDS["Mask R-CNN"][0],
        ["MODEL.ROI_HEADS.NUM_CLASSES", 6],
    ),
}

# untrained, the detectors' own losses are large: these let the distiller's be heard
WEIGHTS = {"weight_am": 0.1, "weight_at": 1.0, "weight_nl": 0.1}


def build(leaf, student=(), teacher=None):
    """
    The leaf's distilling model with an untrained teacher, and the plain student; both tiny.

    Args:
        leaf: below configs/.
        student: options for a YAML config, or a function that makes a LazyConfig's student tiny.
        teacher: for a LazyConfig, such a function or a YAML config of the zoo.
    """
    path = os.path.join(ROOT, "configs", leaf)
    if not is_lazy_file(path):
        cfg = read_config(path, [*STUDENT, *student])
        lazy = cfg.MODEL.TEACHER.CONFIG_FILE.endswith(".py")
        cfg.MODEL.TEACHER.OPTS = LAZY_TEACHER if lazy else TEACHER
        cfg.MODEL.TEACHER.RANDOM_WEIGHTS = True
        cfg.MODEL.TEACHER.FOLD_BN = False  # settle() needs them
        cfg.MODEL.TIMM.PRETRAINED = False
        for key, value in WEIGHTS.items():
            cfg.MODEL.DISTILLER.STRUCTURED[key.upper()] = value
        return build_model(cfg), build_model(student_config(cfg))
    cfg = LazyConfig.load(path)
    student(cfg.model.student)
    cfg.model.distiller.update(WEIGHTS)
    if callable(teacher):
        teacher(cfg.model.teacher.model)
        cfg.model.teacher.update(weights="", random_weights=True, fold_bn=False)
    else:
        file = teacher or cfg.model.teacher.config_file
        opts = [str(o) for o in TEACHER]
        cfg.model.teacher = L(build_teacher)(
            config_file=file, opts=opts, random_weights=True, fold_bn=False
        )
    return instantiate(cfg.model), instantiate(student_config(cfg).model)


def settle(teacher, inputs):
    """Give an untrained network's BN the statistics of its activations, which explode otherwise."""
    norms = [m for m in teacher.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    teacher(inputs, "BGR")
    for norm in norms:
        norm.eval()


def train(model, tmp_path):
    """Train twenty iterations on one batch; returns the state that was saved."""
    model.train()
    inputs = batch(height=64, width=96, classes=1)
    settle(model.teacher, inputs)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    trainer = SimpleTrainer(model, iter([inputs] * 20), optimizer)
    with EventStorage() as storage:
        for _ in range(20):
            trainer.run_step()
            storage.step()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for term in TERMS:
        values = [value for value, _ in storage.history(term).values()]
        assert all(v > 0 for v in values), (term, values)
        assert values[-1] < values[0], (term, values)
    DetectionCheckpointer(model, str(tmp_path)).save("model_final")
    return torch.load(tmp_path / "model_final.pth")["model"]


def check_plain(plain, state):
    result = plain.load_state_dict(state, strict=False)
    assert not result.missing_keys
    assert all(k.startswith("distiller.") for k in result.unexpected_keys)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_trains(kind, tmp_path):
    if "ViTDet" in kind or "Swin" in kind or "timm" in kind:
        pytest.importorskip("timm")
    torch.manual_seed(0)
    model, plain = build(*KINDS[kind])
    check_plain(plain, train(model, tmp_path))
    plain.eval(), model.eval()
    inputs = batch(n=1, height=64, width=96)
    with torch.no_grad():
        expected, seen = plain(inputs)[0], model(inputs)[0]
    assert expected.keys() == seen.keys()
    key = "proposals" if kind == "RPN only" else "instances"
    assert len(expected[key]) == len(seen[key])


@pytest.mark.parametrize("pair", PAIRS)
def test_each_pair_trains(pair, tmp_path):
    if "ViTDet" in pair:
        pytest.importorskip("timm")
    torch.manual_seed(0)
    levels, *what = PAIRS[pair]
    model, plain = build(*what)
    assert list(pairs_of(model)) == levels
    check_plain(plain, train(model, tmp_path))


def test_the_table_of_pairs():
    rows = re.findall(r"^\| (.+? <- .+?) \| ([pres0-9 ]+) \|$", read("docs/detectors.md"), re.M)
    assert {pair: levels.split() for pair, levels in rows} == {k: v[0] for k, v in PAIRS.items()}


def test_the_table_of_kinds():
    """docs/detectors.md names each kind, its leaf, and the teacher that the leaf names."""
    text = read("docs/detectors.md")
    rows = re.findall(r"^\| (.+?) \| \[.*?\]\(\.\./configs/(\S+)\) \| (.+?) \|$", text, re.M)
    assert {kind: leaf for kind, leaf, _ in rows} == {k: v[0] for k, v in KINDS.items()}
    for _, leaf, teacher in rows:
        path = os.path.join(ROOT, "configs", leaf)
        text = read(path)
        if is_lazy_file(path):
            text += str(LazyConfig.load(path).model.teacher)
        else:
            text += read_config(path).MODEL.TEACHER.CONFIG_FILE
        assert teacher.strip("`") in text, leaf
