"""Pictures of reports, of every kind of detector."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, Instances

from skd.study.common import pictures
from skd.study.common.models import Model
from skd.study.visualize_attention import features_of
from tests.helpers import tiny_config
from tests.modeling.test_partial_forward import YoloStudent

C5 = {
    "MODEL__RESNETS__OUT_FEATURES": ["res5"],
    "MODEL__RPN__IN_FEATURES": ["res5"],
    "MODEL__ROI_HEADS__IN_FEATURES": ["res5"],
    "MODEL__ANCHOR_GENERATOR__SIZES": [[16, 32, 64]],
}
SEMANTIC = {
    "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 6,
    "MODEL__SEM_SEG_HEAD__CONVS_DIM": 16,
    "MODEL__SEM_SEG_HEAD__NORM": "",
}
KINDS = {
    "Mask R-CNN": ({}, "P3"),
    "C4": (
        {
            "MODEL__BACKBONE__NAME": "build_resnet_backbone",
            "MODEL__RESNETS__OUT_FEATURES": ["res4"],
            "MODEL__RPN__IN_FEATURES": ["res4"],
            "MODEL__ANCHOR_GENERATOR__SIZES": [[16, 32, 64]],
            "MODEL__ROI_HEADS__NAME": "Res5ROIHeads",
            "MODEL__ROI_HEADS__IN_FEATURES": ["res4"],
            "MODEL__MASK_ON": False,
        },
        "RES4",
    ),
    "DC5": (
        {
            "MODEL__BACKBONE__NAME": "build_resnet_backbone",
            **C5,
            "MODEL__RESNETS__RES5_DILATION": 2,
        },
        "RES5",
    ),
    "semantic": ({"MODEL__META_ARCHITECTURE": "SemanticSegmentor", **SEMANTIC}, "P3"),
    "panoptic": ({"MODEL__META_ARCHITECTURE": "PanopticFPN", **SEMANTIC}, "P3"),
    "proposals": ({"MODEL__META_ARCHITECTURE": "ProposalNetwork"}, "P3"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_and_attention_of_every_kind(kind, shapes, monkeypatch):
    changes, name = KINDS[kind]
    cfg = tiny_config(**changes)
    cfg.MODEL.DEVICE = "cpu"
    monkeypatch.setattr(pictures, "MIN_SCORE", 0.0)  # it is untrained
    metadata = MetadataCatalog.get("tiny_val")
    metadata.set(stuff_classes=[*"abcdef"])
    record = DatasetCatalog.get("tiny_val")[0]
    bgr = pictures.read_image(record["file_name"], "BGR")
    predictor = DefaultPredictor(cfg)
    found = pictures.predictions(predictor, bgr, metadata)
    over = pictures.attention(predictor.model, bgr)
    plain = pictures.cv2.resize(pictures.bgr_to_rgb(bgr), None, fx=3, fy=3)
    for picture in (found, over):
        assert picture.shape == plain.shape and picture.dtype == np.uint8
        assert np.abs(picture.astype(int) - plain).mean() > 1  # something is drawn
    assert pictures.map_name(predictor.model) == name


def test_a_model_without_maps_shows_its_image():
    bgr = np.full((20, 30, 3), (9, 8, 7), np.uint8)
    model = pictures.nn.Conv2d(1, 1, 1)
    assert (pictures.attention(model, bgr) == (7, 8, 9)).all()
    assert pictures.map_name(model) == "no map"


def test_maps_that_have_no_output_shape_are_measured():
    model, rgb = YoloStudent().eval(), np.full((64, 96, 3), 100, np.uint8)
    assert pictures.shown_map(model) == (model.backbone, "0", 8)
    assert (pictures.attention(model, rgb) != 100).any()
    found = features_of(Model("own", tiny_config(), model, ""), rgb, "neck")
    assert {name: x.shape[1] for name, x in found.items()} == {"0": 6, "1": 6}


def test_curves_of_a_detector_without_masks(tmp_path):
    rows = '{"iteration": 0, "total_loss": 2.0, "loss_cls": 2.0}\n{"iteration": 0, "bbox/AP": 3.0}'
    for name in ("baseline", "distilled"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(rows)
    folders = {name: str(tmp_path / name) for name in ("baseline", "distilled")}
    pictures.draw_curves(str(tmp_path / "curves.png"), folders)
    assert pictures.cv2.imread(str(tmp_path / "curves.png")).std() > 10


def test_a_class_has_its_color_in_every_picture():
    """The color is that of all its objects, true or predicted; the classes' colors differ."""
    metadata = Metadata(name="two", thing_classes=["a", "b"])
    gray = np.full((40, 80, 3), 128, np.uint8)
    found = Instances((40, 80), pred_boxes=Boxes(torch.zeros(3, 4)))
    found.pred_masks = torch.zeros(3, 40, 80, dtype=torch.bool)
    for i, start in enumerate((4, 30, 56)):
        found.pred_masks[i, 4:36, start : start + 20] = True
    found.pred_classes, found.scores = torch.tensor([0, 1, 0]), torch.ones(3)
    seen = []
    for _ in range(2):
        drawn = pictures._ByClass(gray, metadata).draw_instance_predictions(found).get_image()
        inside = [drawn[3 * 30, 3 * (start + 16)] for start in (4, 30, 56)]
        assert np.array_equal(inside[0], inside[2]) and not np.array_equal(inside[0], inside[1])
        seen.append(inside)
    assert np.array_equal(*seen)
    own = Metadata(name="own", thing_classes=["a"], thing_colors=[(1, 2, 3)])
    assert pictures._with_colors(own).thing_colors == [(1, 2, 3)]


def test_a_finished_run_needs_no_weights_of_timm(tmp_path):
    cfg = tiny_config(MODEL__BACKBONE__NAME="build_timm_fpn_backbone")
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.WEIGHTS = True, "weights/not_here.safetensors"
    (tmp_path / "config.yaml").write_text(cfg.dump())
    found = pictures.load_config(str(tmp_path))
    assert (found.MODEL.TIMM.PRETRAINED, found.MODEL.TIMM.WEIGHTS) == (False, "")
