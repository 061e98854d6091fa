"""The command line, in processes of its own."""

import json
import os

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate

from skd import student_config
from tests.helpers import LAZY, tiny_config
from tests.processes import call_script, run_script

pytestmark = pytest.mark.slow


def run(*args, **kwargs):
    """Run train_net.py; returns what it printed."""
    return run_script("train_net.py", *args, **kwargs)


@pytest.fixture(scope="module")
def student_file(tmp_path_factory):
    """A stock config, without a word of distillation."""
    cfg = tiny_config(SOLVER__MAX_ITER=2)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("skd_shapes_train",), ("skd_shapes_val",)
    path = tmp_path_factory.mktemp("configs") / "student.yaml"
    path.write_text(student_config(cfg).dump())
    return path


def iterations(folder):
    rows = [json.loads(line) for line in open(os.path.join(folder, "metrics.json"))]
    return [r["iteration"] for r in rows if "total_loss" in r]


def test_one_flag_distils_a_stock_config(student_file, teacher_files, shapes, tmp_path):
    config, weights = teacher_files
    common = ["--config-file", student_file]
    flags = ["--teacher", config, "--teacher-weights", weights]
    printed = run(*common, *flags, "OUTPUT_DIR", tmp_path, datasets=shapes)
    assert "loss_distill_structured_am" in printed
    # the folder is as Detectron2 makes it, and the student stands on its own in it
    assert {"config.yaml", "student.yaml", "model_final.pth", "metrics.json", "log.txt"} <= set(
        os.listdir(tmp_path)
    )
    stock = get_cfg()
    stock.merge_from_file(str(tmp_path / "student.yaml"))
    assert stock.MODEL.WEIGHTS == str(tmp_path / "model_final.pth")
    # evaluation of the distilled config needs no teacher
    again = run(
        "--config-file", tmp_path / "config.yaml", "--eval-only", "MODEL.WEIGHTS",
        tmp_path / "model_final.pth", "MODEL.TEACHER.WEIGHTS", "/gone.pth",
        "OUTPUT_DIR", tmp_path / "eval", datasets=shapes,
    )  # fmt: skip
    assert "copypaste: Task: segm" in again
    (row,) = [json.loads(line) for line in open(tmp_path / "eval" / "metrics.json")]
    assert row["iteration"] == 1 and {"bbox/AP", "segm/AP"} <= set(row)


def test_without_a_teacher_the_plain_model_is_trained(student_file, shapes, tmp_path):
    data = ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"]
    call_script("train_net.py", "--config-file", student_file, "OUTPUT_DIR", tmp_path, *data)
    printed = (tmp_path / "log.txt").read_text()
    assert "loss_mask" in printed and "loss_distill" not in printed
    assert not os.path.exists(tmp_path / "student.yaml")
    state = torch.load(tmp_path / "model_final.pth")["model"]
    assert not [k for k in state if k.startswith("distiller.")]


def test_a_lazy_config_distils_resumes_in_two_processes_and_is_evaluated(
    teacher_files, shapes, tmp_path
):
    config = tmp_path / "student.py"
    config.write_text(LAZY)
    flags = ["--config-file", config, "--teacher", teacher_files[0]]
    flags += ["--teacher-weights", teacher_files[1]]
    out = tmp_path / "out"
    printed = run(*flags, f"train.output_dir={out}", datasets=shapes)
    assert "loss_distill_structured_nl" in printed and "copypaste: Task: segm" in printed
    state = torch.load(out / "model_final.pth")
    plain = LazyConfig.load(str(out / "student.yaml"))
    model = instantiate(plain.model)
    result = model.load_state_dict(state["model"], strict=False)
    assert not result.missing_keys
    assert all(k.startswith("distiller.") for k in result.unexpected_keys)
    # resume in two processes, from the saved config that now names the teacher itself
    again = run(
        "--config-file", out / "config.yaml", "--resume", "--num-gpus", 2, "--dist-url", "auto",
        "train.max_iter=5", datasets=shapes,
    )  # fmt: skip
    assert "Starting training from iteration 3" in again
    resumed = torch.load(out / "model_final.pth")
    assert resumed["iteration"] == 4 and resumed["model"].keys() == state["model"].keys()
    printed = run(
        *flags, "--eval-only", f"train.output_dir={tmp_path / 'eval'}",
        f"train.init_checkpoint={out / 'model_final.pth'}", datasets=shapes,
    )  # fmt: skip
    assert "copypaste: Task: segm" in printed and "loss_distill" not in printed


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--teacher", "no_such_teacher.yaml"], "Unknown teacher 'no_such_teacher.yaml'"),
        (["--teacher-weights", "w.pth"], "--teacher-weights without --teacher"),
    ],
)
def test_bad_flags_fail_before_any_work(student_file, tmp_path, flags, message):
    args = ["--config-file", student_file, *flags, "OUTPUT_DIR", tmp_path]
    printed = call_script("train_net.py", *args, ok=False)
    assert message in printed and "Starting training" not in printed


def test_the_mask_rcnn_leaf_trains_on_coco_images(tmp_path):
    """Five iterations of the README's command, at tiny inputs, with an untrained teacher."""
    root = os.path.abspath(os.getenv("DETECTRON2_DATASETS", ""))
    if not os.path.isfile(os.path.join(root, "coco", "annotations", "instances_train2017.json")):
        pytest.skip("no COCO below DETECTRON2_DATASETS")
    printed = run(
        "--config-file", "configs/COCO-InstanceSegmentation/skd_mask_rcnn_R_50_FPN_1x.yaml",
        "OUTPUT_DIR", tmp_path, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
        "MODEL.TEACHER.RANDOM_WEIGHTS", True, "SOLVER.MAX_ITER", 5, "SOLVER.IMS_PER_BATCH", 2,
        # an untrained FrozenBN network is far from stable
        "SOLVER.BASE_LR", 1e-8, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", 96,
        "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, "DATALOADER.NUM_WORKERS", 0,
        "DATASETS.TEST", "()", "SEED", 1,
        datasets=root,
    )  # fmt: skip
    assert "THE TEACHER IS UNTRAINED" in printed and "loss_distill_structured_nl" in printed
    assert iterations(tmp_path)[-1] == 4
    state = torch.load(tmp_path / "model_final.pth")["model"]
    assert state["roi_heads.box_predictor.cls_score.weight"].shape[0] == 81
