"""A batch taken in parts gives the gradient of the whole."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from skd.engine import SKDTrainer
from skd.runtime.step import build_trainer
from tests.helpers import batch, distilling, run_script, tiny_config


def distilling_model(teacher_files):
    """Whose losses are all means over images: no batch statistics, and no sampling."""
    cfg = distilling(
        tiny_config(), teacher_files, "mean",
        MODEL__RESNETS__NORM="FrozenBN", MODEL__FPN__NORM="",
        MODEL__DISTILLER__STRUCTURED__NON_LOCAL__NORM="",
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg)

    def forward(inputs):
        images = model.student.preprocess_image(inputs)
        return {"loss_own": model.backbone(images.tensor)["p3"].square().mean()}

    model.student.forward = forward
    return model


def gradients(model, parts):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = build_trainer(model, iter([batch(n=4)] * 2), optimizer, parts=parts)
    with EventStorage() as storage:
        for _ in range(2):  # the second step starts from zero again
            trainer.run_step()
        losses = {k: v[0] for k, v in storage.latest().items() if "loss" in k}
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 4])
def test_the_same_gradients_and_losses(teacher_files, parts):
    expected_losses, expected = gradients(distilling_model(teacher_files), 1)
    losses, ours = gradients(distilling_model(teacher_files), parts)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert ours.keys() == expected.keys() and any("non_local" in n for n in ours)
    for name, value in expected.items():
        scale = value.abs().max() + 1e-12
        torch.testing.assert_close(ours[name] / scale, value / scale, rtol=1e-4, atol=1e-5)


def test_parts_that_do_not_divide_the_batch_are_refused(teacher_files, shapes):
    cfg = distilling(tiny_config(SOLVER__IMS_PER_BATCH=4), teacher_files)
    cfg.SOLVER.ACCUMULATE = 3
    with pytest.raises(ValueError, match="SOLVER.ACCUMULATE is 3, and each process gets 4 images"):
        SKDTrainer(cfg)


@pytest.mark.parametrize(
    "key,value,expected",
    [
        ("SOLVER.MAX_ITER", 0, "a whole number above 0"),
        ("SOLVER.MAX_ITER", -5, "a whole number above 0"),
        ("SOLVER.BASE_LR", 0.0, "a number above 0"),
        ("SOLVER.BASE_LR", float("nan"), "a number above 0"),
        ("SOLVER.IMS_PER_BATCH", 0, "a multiple of the number of processes, 1"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "a whole number above 0"),
        ("TEST.EVAL_PERIOD", -1, "a whole number, 0 or above; 0 for never"),
        ("SOLVER.SKIP_NON_FINITE", -1, "a whole number, 0 or above"),
        ("DATALOADER.NUM_WORKERS", -1, "a whole number, 0 or above"),
        ("DATASETS.TRAIN", (), "a dataset's name"),
    ],
)
def test_values_out_of_range_are_named_before_anything_is_built(key, value, expected):
    cfg = tiny_config()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=rf"^{key} is .*; it must be {expected}"):
        SKDTrainer(cfg)


def test_an_unknown_data_set_is_named(shapes):
    cfg = tiny_config(DATASETS__TRAIN=("mine_trian",))
    with pytest.raises(ValueError, match="'mine_trian', which nobody has registered"):
        SKDTrainer(cfg)


def test_with_a_teacher_without_and_in_two_processes(teacher_files, shapes, tmp_path):
    cfg = tiny_config(SOLVER__IMS_PER_BATCH=4, SOLVER__ACCUMULATE=2, SOLVER__MAX_ITER=2)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("skd_shapes_train",), ()
    (tmp_path / "student.yaml").write_text(cfg.dump())
    common = ["--config-file", tmp_path / "student.yaml", "OUTPUT_DIR", tmp_path / "out"]
    run_script("train_net.py", *common, datasets=shapes)
    state = torch.load(tmp_path / "out" / "model_final.pth")
    assert state["iteration"] == 1
    teacher = ["--teacher", teacher_files[0], "--teacher-weights", teacher_files[1]]
    printed = run_script(
        "train_net.py", *teacher, "--num-gpus", 2, "--dist-url", "auto", *common, datasets=shapes
    )
    assert "loss_distill_structured_am" in printed
    with open(tmp_path / "out" / "student.yaml") as f:
        assert "ACCUMULATE" not in f.read()
