"""MODEL.DISTILLER.BALANCE.UNTIL: the teacher stops at a part of the training."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from skd import student_config
from skd.study.benchmark.measure import launches
from tests.helpers import batch, check_resume, distilling, tiny_config
from tests.processes import one_process


def config(teacher_files, until=0.5, **keys):
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=8, **keys), teacher_files, balance=True)
    cfg.MODEL.DISTILLER.BALANCE.UNTIL = until
    return cfg


def build(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def step(model, iteration):
    with EventStorage(iteration):
        torch.manual_seed(3)  # for the sampling of proposals
        return model(batch())


def test_the_teacher_runs_until_then_and_no_longer(teacher_files, monkeypatch):
    model, calls = build(config(teacher_files)), []
    start = model.teacher.start
    monkeypatch.setattr(model.teacher, "start", lambda *args: calls.append(1) or start(*args))
    losses = [step(model, iteration) for iteration in range(8)]
    terms = [{k: v for k, v in x.items() if k.startswith("loss_distill_")} for x in losses]
    assert len(calls) == 4
    assert all(value > 0 for x in terms[:4] for value in x.values())
    # in the log they are 0, and not what they were last
    assert all(x.keys() == terms[0].keys() and not any(x.values()) for x in terms[4:])


def test_then_the_student_is_the_baseline_and_the_distiller_gets_zeros(teacher_files):
    cfg = config(teacher_files)
    model, baseline = build(cfg), build(student_config(cfg))
    step(model, 0)
    losses, expected = step(model, 4), step(baseline, 4)
    for name in expected:
        losses[name] *= 1  # as a project's own training loop may weigh them
    assert all(torch.equal(losses[name], value) for name, value in expected.items())
    sum(losses.values()).backward(), sum(expected.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, p in baseline.named_parameters():
        assert p.grad is None or torch.equal(gradients[name], p.grad), name
    ours = [p.grad for p in model.distiller.parameters()]
    assert ours and not any(gradient.any() for gradient in ours)


def test_then_a_step_starts_next_to_no_more_operations_than_the_students(teacher_files):
    """A GPU's host needs as long for each, whatever its size; a distiller has many parameters."""
    cfg = config(teacher_files)
    model, baseline = build(cfg), build(student_config(cfg))
    step(model, 0)
    few, own = (launches(lambda: sum(step(m, 4).values()).backward()) for m in (model, baseline))
    assert few - own < 20 < len(list(model.distiller.parameters()))


def test_data_parallel_training_goes_on_after_the_end(teacher_files, tmp_path):
    """One process is enough for its reducer to complain of a parameter without a gradient."""
    with one_process(tmp_path):
        parallel = DistributedDataParallel(build(config(teacher_files)), broadcast_buffers=False)
        assert not parallel.find_unused_parameters
        for iteration in (3, 4, 5):
            sum(step(parallel, iteration).values()).backward()


def test_unlabelled_images_and_heads_end_too(teacher_files):
    cfg = config(teacher_files)
    cfg.MODEL.DISTILLER.HEADS.NAMES = ["RPNHead"]
    model = build(cfg)
    labels = batch()
    unlabelled = [
        {"image": x["image"], "height": 64, "width": 64, "unlabelled": True} for x in labels
    ]
    with EventStorage(0):
        first = model(labels + unlabelled)
    with EventStorage(4):
        last = model(labels)  # as the loader gives them then
    terms = [name for name in first if name.startswith("loss_distill_")]
    assert "loss_distill_unlabelled" in terms and any("rpn" in name for name in terms)
    assert first.keys() == last.keys() and not any(last[name] for name in terms)


def test_a_run_that_resumes_after_the_end_goes_on_as_the_baseline(teacher_files, shapes, tmp_path):
    cfg = config(teacher_files, until=0.25, SOLVER__CHECKPOINT_PERIOD=3, DATASETS__TEST=())
    assert check_resume(cfg, tmp_path, until=3)["distiller.balance.iteration"] == 2


@pytest.mark.parametrize("until", [0, -0.5, 1.5, True, "half"])
def test_a_wrong_part_is_named(teacher_files, until):
    cfg = config(teacher_files)
    with pytest.raises(ValueError, match="BALANCE.UNTIL is .*; it must be a number above 0, at"):
        cfg.MODEL.DISTILLER.BALANCE.UNTIL = until
        build(cfg)
