"""Detectron2's own trainer and checkpointer, on a few images of the built-in dataset."""

import json
import os
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.modeling import build_model

from skd import student_config
from skd.engine import SKDTrainer
from tests.helpers import batch, distilling, save_detector, tiny_config, train_until, weights


@pytest.fixture(scope="module")
def trained(teacher_files, shapes, tmp_path_factory):
    """One distillation with everything on: its config and folder."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = distilling(
        tiny_config(VIS_PERIOD=2, SOLVER__MAX_ITER=5, SOLVER__CHECKPOINT_PERIOD=2), teacher_files
    )
    trainer = train_until(cfg, folder)
    return cfg, folder, trainer


def test_model_final_is_a_plain_detectron2_checkpoint(trained):
    cfg, folder, trainer = trained
    plain = student_config(cfg)
    plain.MODEL.WEIGHTS = str(folder / "model_final.pth")
    assert not {"STUDENT", "TEACHER", "DISTILLER"} & set(plain.MODEL)
    model = build_model(plain).eval()
    extra = [k for k in weights(folder) if k not in model.state_dict()]
    assert extra and all(k.startswith("distiller.") for k in extra)
    assert not [k for k in model.state_dict() if k not in weights(folder)]
    DetectionCheckpointer(model).load(plain.MODEL.WEIGHTS)
    for inputs in build_detection_test_loader(plain, "tiny_val"):
        with torch.no_grad():
            trained_here, stock = trainer.model.eval()(inputs), model(inputs)
        for a, b in zip(trained_here, stock):
            for field in ("scores", "pred_classes", "pred_masks"):
                assert torch.equal(a["instances"].get(field), b["instances"].get(field))
    trainer.model.train()


def test_stock_predictor_needs_no_skd_keys(trained):
    cfg, folder, _ = trained
    stock = get_cfg()
    path = folder / "student.yaml"
    path.write_text(student_config(cfg).dump())
    stock.merge_from_file(str(path))
    stock.MODEL.WEIGHTS = str(folder / "model_final.pth")
    image = batch(1)[0]["image"].permute(1, 2, 0).numpy()
    assert "instances" in DefaultPredictor(stock)(image)


def test_metrics_evaluation_and_events_are_written(trained):
    _, folder, _ = trained
    rows = [json.loads(line) for line in open(folder / "metrics.json")]
    terms = [f"loss_distill_structured_{term}" for term in ("am", "at", "nl")]
    levels = ["distill/structured_am_p2", "distill/structured_nl_p6", "distill/cka_p2"]
    memory = ["peak_memory_mb"] if os.path.exists("/proc/self/status") else []
    for key in (*terms, *levels, *memory, "total_loss", "bbox/AP", "segm/AP"):
        assert any(key in row for row in rows), key
    assert max(row["iteration"] for row in rows) >= 4
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"loss_distill_structured_am", "distill/cka_p4", "lr"} <= set(events.Tags()["scalars"])
    assert "attention: input, student, teacher" in events.Tags()["images"]


def test_resume_restores_adapters_and_optimizer(trained, tmp_path):
    cfg, folder, _ = trained
    fresh = cfg.clone()
    fresh.OUTPUT_DIR = str(folder)
    trainer = SKDTrainer(fresh)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 5
    saved = torch.load(folder / "model_final.pth")
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, saved["model"][key]), key
    resumed = trainer._trainer.optimizer.state_dict()["state"]
    written = saved["trainer"]["_trainer"]["optimizer"]["state"]
    trainable = [p for p in trainer.model.parameters() if p.requires_grad]
    assert resumed.keys() == written.keys() and len(resumed) == len(trainable)
    for i in resumed:
        assert torch.equal(resumed[i]["momentum_buffer"], written[i]["momentum_buffer"])


def test_without_weight_the_student_is_trained_as_the_baseline(teacher_files, shapes, tmp_path):
    """Same first weights, same data, same sampling: distillation changes nothing but the loss."""
    cfg = tiny_config()
    train_until(student_config(cfg), tmp_path / "baseline")
    zero = {f"MODEL__DISTILLER__STRUCTURED__WEIGHT_{t}": 1e-30 for t in ("AM", "AT", "NL")}
    train_until(distilling(cfg, teacher_files, **zero), tmp_path / "distilled")
    baseline, distilled = weights(tmp_path / "baseline"), weights(tmp_path / "distilled")
    assert all(torch.equal(distilled[k], v) for k, v in baseline.items())


def test_any_default_trainer_will_do(teacher_files, shapes, tmp_path):
    class Trainer(DefaultTrainer):
        @classmethod
        def test(cls, cfg, model):
            return {}

    train_until(distilling(tiny_config(), teacher_files), tmp_path, trainer=Trainer)
    assert any(k.startswith("distiller.") for k in weights(tmp_path))


def test_gradients_are_clipped_and_frozen_layers_stay_frozen(teacher_files, shapes, tmp_path):
    cfg = distilling(tiny_config(), teacher_files, MODEL__BACKBONE__FREEZE_AT=2)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1e-3
    trainer = train_until(cfg, tmp_path)
    frozen = [n for n, p in trainer.model.named_parameters() if not p.requires_grad]
    assert frozen and all(n.startswith("backbone.bottom_up.") for n in frozen)
    clipped = [p.grad.abs().max().item() for p in trainer.model.parameters() if p.grad is not None]
    assert max(clipped) == pytest.approx(1e-3)


@pytest.mark.parametrize("form", ["imagenet_pkl", "zoo_pkl", "plain_pth"])
def test_the_student_starts_from_any_weights(teacher_files, tmp_path, form):
    """MODEL.WEIGHTS, by the stock checkpointer, reaches the student's keys and no others."""
    cfg = tiny_config()
    _, path = save_detector(cfg, tmp_path, seed=23)
    state = torch.load(path)["model"]
    arrays = {k: v.numpy() for k, v in state.items()}
    if form == "imagenet_pkl":  # a bare backbone, matched by the ends of the names
        prefix = "backbone.bottom_up."
        content = {
            "model": {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)},
            "__author__": "torchvision",
            "matching_heuristics": True,
        }
        expected = [k for k in state if k.startswith(prefix)]
    else:
        content, expected = {"model": arrays, "__author__": "Detectron2 Model Zoo"}, list(state)
    if form != "plain_pth":
        path = str(tmp_path / "weights.pkl")
        with open(path, "wb") as f:
            pickle.dump(content, f)
    model = build_model(distilling(cfg, teacher_files))
    adapters = {k: v.clone() for k, v in model.distiller.state_dict().items()}
    DetectionCheckpointer(model).load(path)
    loaded = model.state_dict()
    assert expected and all(torch.equal(loaded[k], state[k]) for k in expected)
    assert all(torch.equal(v, adapters[k]) for k, v in model.distiller.state_dict().items())


def test_another_number_of_classes_only_skips_the_predictors(teacher_files, tmp_path):
    _, path = save_detector(tiny_config(MODEL__ROI_HEADS__NUM_CLASSES=3), tmp_path, seed=23)
    model = build_model(distilling(tiny_config(), teacher_files))
    DetectionCheckpointer(model).load(path)
    state = torch.load(path)["model"]
    key = "backbone.fpn_output2.weight"
    assert torch.equal(model.state_dict()[key], state[key])


def test_half_precision_that_needs_a_gpu_is_refused_on_a_cpu(teacher_files, shapes):
    message = "^SOLVER.AMP.ENABLED is True, and SOLVER.AMP.PRECISION fp16 needs a GPU: set it bf16"
    with pytest.raises(ValueError, match=message):
        SKDTrainer(distilling(tiny_config(SOLVER__AMP__ENABLED=True), teacher_files))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_amp_trains_and_resumes_on_a_gpu(teacher_files, shapes, tmp_path):
    """In fp16, with the balance, whose weights are 0 where squares of gradients underflow."""
    cfg = distilling(
        tiny_config(SOLVER__AMP__ENABLED=True, MODEL__DEVICE="cuda", SOLVER__MAX_ITER=3),
        teacher_files, balance=True,
    )  # fmt: skip
    trainer = train_until(cfg, tmp_path)
    assert all(weight > 0 for weight in trainer.model.distiller.balance.weights().values())
    assert trainer.model.teacher.detector.pixel_mean.device.type == "cuda"
    cfg.SOLVER.MAX_ITER = 5
    assert train_until(cfg, tmp_path, resume=True).start_iter == 3
    assert "grad_scaler" in torch.load(tmp_path / "model_final.pth")["trainer"]["_trainer"]


def test_bf16_trains_on_a_cpu(teacher_files, shapes, tmp_path):
    mixed = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__PRECISION": "bf16"}
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=2, **mixed), teacher_files)
    cfg.DATASETS.TEST = ()
    trainer, seen = SKDTrainer(cfg), []
    trainer.model.backbone.fpn_output2.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    trainer.train()
    assert seen == [torch.bfloat16] * 2
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.model.parameters())
    assert "PRECISION" not in student_config(cfg).SOLVER.AMP
