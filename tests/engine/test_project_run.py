"""A project that comes with Detectron2, distilled from the command line by a config of its own."""

import pytest
from detectron2.modeling import build_model

from skd import student_config, train_net
from skd.config import projects
from tests.helpers import save_detector, tiny_config

POINTREND = [
    "MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead", "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True,
    "MODEL.ROI_MASK_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8,
    "MODEL.POINT_HEAD.FC_DIM", 16, "MODEL.POINT_HEAD.NUM_CLASSES", 6,
    "INPUT.MASK_FORMAT", "bitmask", "TEST.DETECTIONS_PER_IMAGE", 3,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "", "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", 7,
]  # fmt: skip


def test_pointrend_by_its_own_config(shapes, tmp_path, monkeypatch):
    """Student and teacher; trained, then evaluated by the plain config with the same results."""
    monkeypatch.setattr(projects, "_used", {})
    cfg = tiny_config(SOLVER__MAX_ITER=1, DATASETS__TEST=("tiny_val",))
    projects.declare(cfg, ["PointRend"])
    cfg.merge_from_list(POINTREND)
    teacher, weights = save_detector(cfg, tmp_path / "teacher")
    student = tmp_path / "student.yaml"
    student.write_text(student_config(cfg).dump())

    def run(*flags):
        args = ["--project", "PointRend", "--config-file", str(student), *flags]
        args += ["OUTPUT_DIR", str(tmp_path / "out")]
        return train_net.main(train_net.argument_parser().parse_args(args))

    results = run("--teacher", teacher, "--teacher-weights", weights)
    final = str(tmp_path / "out" / "model_final.pth")
    again = run("--eval-only", "MODEL.WEIGHTS", final)
    for task in ("bbox", "segm"):
        assert again[task] == pytest.approx(results[task], nan_ok=True)
    head = build_model(student_config(cfg)).roi_heads.mask_head
    assert type(head).__name__ == "PointRendMaskHead"
