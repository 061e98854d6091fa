"""
The teacher's heads and images without labels in one training: in several processes, in
micro-batches, and in mixed precision.
"""

import json

import pytest
import torch
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from skd.engine import wrap_data_parallel
from skd.modeling.unlabelled import TERM
from skd.runtime.step import build_trainer
from tests.helpers import batch, step, train_until
from tests.modeling.test_heads import TERMS, build, config
from tests.modeling.test_unlabelled import unlabelled
from tests.processes import leave_together


def halves():
    """Of a batch: two labelled images and one without labels in each."""
    labelled, others = batch(4), unlabelled(2)
    return [labelled[:2] + others[:1], labelled[2:] + others[1:]]


def check_mean(grads, parts):
    """Hold that gradients, by name, are the mean of those of the batch's parts."""
    assert grads.keys() == parts[0].keys() == parts[1].keys()
    for name, value in grads.items():
        mean = (parts[0][name] + parts[1][name]) / 2
        assert not torch.equal(parts[0][name], parts[1][name]) or not mean.any(), name
        scale = mean.abs().max() + 1e-12
        torch.testing.assert_close(value / scale, mean / scale, rtol=1e-4, atol=1e-5)


def worker(teacher_files, out):
    torch.set_num_threads(1)
    model = wrap_data_parallel(build(teacher_files), broadcast_buffers=False)
    assert not model.find_unused_parameters
    torch.save(step(model, halves()[comm.get_rank()]), f"{out}/{comm.get_rank()}")
    leave_together()


@pytest.mark.slow
def test_the_gradient_of_two_processes_is_the_mean_of_theirs(teacher_files, tmp_path):
    launch(worker, 2, dist_url="auto", args=(teacher_files, str(tmp_path)))
    alone = [step(build(teacher_files), half) for half in halves()]
    for rank, (expected, _) in enumerate(alone):
        losses, grads = torch.load(tmp_path / str(rank))
        assert TERMS | {TERM} <= losses.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)
        check_mean(grads, [grads_alone for _, grads_alone in alone])


def test_the_gradient_of_two_micro_batches_is_the_mean_of_theirs(teacher_files):
    (first, second), model = halves(), build(teacher_files)
    # each kind by itself, as the loader gives them
    whole = [*first[:2], *second[:2], first[2], second[2]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = build_trainer(model, iter([whole]), optimizer, accumulate=2)
    with EventStorage(), torch.jit.optimized_execution(False):
        torch.manual_seed(3)
        trainer.run_step()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    model, parts = build(teacher_files), []
    torch.manual_seed(3)
    for half in (first, second):
        model.zero_grad()
        with EventStorage(), torch.jit.optimized_execution(False):
            sum(model(half).values()).backward()
        parts.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    check_mean(grads, parts)


def train(cfg, folder):
    torch.set_num_threads(1)
    model = train_until(cfg, folder).model
    torch.save(model.state_dict(), f"{folder}/state{comm.get_rank()}")
    leave_together()


@pytest.mark.slow
def test_trained_in_two_processes_micro_batches_and_mixed_precision(
    teacher_files, shapes, tmp_path, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    changes = {"SOLVER__ACCUMULATE": 2, "SOLVER__IMS_PER_BATCH": 4, "SOLVER__MAX_ITER": 3}
    cfg = config(teacher_files, balance=True, **changes)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("skd_shapes_train",), ()
    cfg.DATASETS.UNLABELLED = ("skd_shapes_val",)
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.PRECISION = True, "bf16"
    launch(train, 2, dist_url="auto", args=(cfg, str(tmp_path)))
    first, second = (torch.load(tmp_path / f"state{i}") for i in range(2))
    own = [k for k in first if "running" not in k]  # each process has images of its own
    assert own and all(torch.equal(first[k], second[k]) for k in own)
    rows = [json.loads(line) for line in open(tmp_path / "metrics.json")]
    assert all(rows[-1][k] > 0 for k in TERMS | {TERM})
    assert all(v.isfinite().all() for v in first.values())
