"""MODEL.DISTILLER.EVERY: the teacher and the losses in every k-th iteration only."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from skd import student_config
from skd.distillers import GradientBalance
from skd.runtime.step import build_trainer
from tests.helpers import DEVICES, batch, check_resume, distilling, step, tiny_config
from tests.processes import one_process


@pytest.fixture
def build(teacher_files):
    def build(every, balance=False, **changes):
        cfg = distilling(tiny_config(), teacher_files, balance=balance, **changes)
        cfg.MODEL.DISTILLER.EVERY = every
        torch.manual_seed(0)
        return build_model(cfg)

    return build


def largest(gradients):
    return max(g.norm() for g in gradients.values())


def test_every_third_step_distils_with_three_times_the_weight(build, monkeypatch):
    model, always = build(3), build(1)
    calls = []
    start = model.teacher.start
    monkeypatch.setattr(model.teacher, "start", lambda *args: calls.append(1) or start(*args))
    expected, _ = step(always)
    for iteration in range(7):
        losses, _ = step(model, iteration=iteration)
        terms = {k for k in losses if k.startswith("loss_distill")}
        assert bool(terms) == (iteration % 3 == 0)
        for name, value in losses.items():
            factor = 3 if name in terms else 1
            torch.testing.assert_close(value, factor * expected[name], rtol=1e-4, atol=1e-6)
    assert len(calls) == 3


@pytest.mark.parametrize("balance", [False, True])
def test_the_mean_gradient_is_that_of_distilling_always(build, balance):
    """Mean gradients of student and distiller, at fixed weights, are those of distilling always."""
    model = build(2, balance)
    gradients = [step(model, iteration=iteration)[1] for iteration in (0, 1)]
    _, expected = step(build(1, balance))
    assert gradients[0].keys() == gradients[1].keys() == expected.keys()
    for name, value in expected.items():
        mean = (gradients[0][name] + gradients[1][name]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-3, atol=1e-4 * value.abs().max().item())


def test_between_the_student_is_the_baseline_and_the_distiller_gets_zeros(build, teacher_files):
    model = build(2)
    model.pop_metrics()
    torch.manual_seed(0)
    baseline = build_model(student_config(distilling(tiny_config(), teacher_files)))
    losses, gradients = step(model, iteration=1)
    expected, of_baseline = step(baseline, iteration=1)
    assert list(losses) == list(expected)
    assert all(torch.equal(losses[k], v) for k, v in expected.items())
    assert all(torch.equal(gradients[k], v) for k, v in of_baseline.items())
    ours = {k for k, _ in model.named_parameters() if k.startswith("distiller.")}
    assert ours and ours == gradients.keys() - of_baseline.keys()
    assert not any(gradients[name].any() for name in ours)
    assert set(model.pop_metrics()) == {"detector_loss"}


def test_all_parts_of_a_batch_do_the_same(build):
    model = build(2)
    model.pop_metrics()
    trainer = build_trainer(
        model, iter([batch(n=2)] * 3), torch.optim.SGD(model.parameters(), 0.0), accumulate=2
    )
    with EventStorage() as storage:
        seen = []
        for trainer.iter in range(3):
            trainer.run_step()
            seen.append(storage.latest()["loss_distill_structured_nl"][1])
            storage.step()
    assert seen == [0, 0, 2]  # the iteration of the last value


def test_the_balance_measures_in_steps_that_distil():
    balance = GradientBalance(burn_in=2, period=4, warmup=7)
    balance.register_buffer("norm_detector", torch.ones(1))
    due = []
    for iteration in range(0, 60, 3):
        balance.begin({}, iteration, every=3)
        due += [iteration // 3] if balance.due() else []
    # two at the start, two after the warm-up of three of them, every fourth
    assert due == [0, 1, 3, 4, 8, 12, 16]


def test_a_run_that_resumes_between_goes_on_in_phase(teacher_files, shapes, tmp_path):
    cfg = distilling(
        tiny_config(SOLVER__MAX_ITER=5, SOLVER__CHECKPOINT_PERIOD=2), teacher_files, balance=True
    )
    cfg.MODEL.DISTILLER.EVERY, cfg.DATASETS.TEST = 3, ()
    resumed = check_resume(cfg, tmp_path, until=2)
    assert resumed["distiller.balance.iteration"] == 4  # after the iteration 3


@pytest.mark.parametrize("device", DEVICES)
def test_data_parallel_training_looks_for_no_unused_parameters(build, device, tmp_path):
    """One process (over NCCL on a GPU) is enough for the reducer to complain."""
    expected = [step(build(2, balance=True).to(device), iteration=i)[1] for i in (0, 1, 2)]
    with one_process(tmp_path, "nccl" if device == "cuda" else "gloo"):
        model = build(2, balance=True).to(device)
        parallel = DistributedDataParallel(model, broadcast_buffers=False)
        assert not parallel.find_unused_parameters
        for iteration, gradients in enumerate(expected):
            _, ours = step(parallel, iteration=iteration)
            for name, value in gradients.items():
                if device == "cuda":  # its sums are in no fixed order, and a tiny net amplifies it
                    error = (ours[name] - value).norm()
                    assert error < 0.05 * (value.norm() + 0.1 * largest(gradients)), name
                    continue
                torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("every", [0, -2, 1.5, True, "2"])
def test_a_wrong_number_is_named(build, every):
    with pytest.raises(ValueError, match="EVERY.* is .*; it must be a whole number above 0"):
        build(every)


def test_without_an_event_storage_nobody_knows_the_iteration(build):
    with pytest.raises(ValueError, match="EVERY is 2, and there is no event storage"):
        build(2)(batch())
