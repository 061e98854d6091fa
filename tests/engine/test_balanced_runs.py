"""The balance in real models: gradient accumulation, mixed precision. Resume: tests/modeling."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.utils.checkpoint import checkpoint

from skd.runtime.step import build_trainer
from tests.helpers import batch, distilling, tiny_config
from tests.runtime.test_step import MeanOfP3  # noqa: F401, a name in the registry

TERMS = [f"structured_{term}" for term in ("am", "at", "nl")]


def balanced(teacher_files):
    """Whose losses are means over images, so that a batch in parts has the same ones."""
    cfg = distilling(
        tiny_config(), teacher_files, "mean", balance=True,
        MODEL__STUDENT__META_ARCHITECTURE="MeanOfP3",
        MODEL__RESNETS__NORM="FrozenBN", MODEL__FPN__NORM="",
        MODEL__DISTILLER__STRUCTURED__NON_LOCAL__NORM="", MODEL__DISTILLER__BALANCE__SHARE=3.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return build_model(cfg)


def steps(model, parts, n=3):
    trainer = build_trainer(
        model, iter([batch(n=4)] * n), torch.optim.SGD(model.parameters(), lr=0.0), accumulate=parts
    )
    with EventStorage() as storage:
        for storage.iter in range(n):
            trainer.run_step()
        return {k: v for k, (v, _) in storage.latest().items()}


def test_a_batch_in_parts_has_the_same_shares_and_counts_as_one_iteration(teacher_files):
    whole, parts = balanced(teacher_files), balanced(teacher_files)
    expected, seen = steps(whole, 1), steps(parts, 2)
    assert parts.distiller.balance.iteration == whole.distiller.balance.iteration == 3
    halves = []
    for part in (batch(n=4)[:2], batch(n=4)[2:]):
        with EventStorage(0):
            whole(part)
        halves.append(whole._skd.alike.levels["p3"].item())
    assert seen["distill/cka_p3"] == pytest.approx(sum(halves) / 2, rel=1e-4)
    for term in TERMS:
        assert seen[f"distill/share_{term}"] == pytest.approx(1, rel=1e-4)
        weight = f"distill/weight_{term}"
        assert seen[weight] == pytest.approx(expected[weight], rel=0.3)  # of other batches


def test_in_mixed_precision_the_shares_are_the_same(teacher_files):
    found = []
    for mixed in (False, True):
        model = balanced(teacher_files)
        with EventStorage(0), torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            losses = model(batch(n=2))
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        found.append({**model.distiller.balance.scalars(), **model._skd.alike.scalars()})
    assert found[1]["cka_p3"].item() == pytest.approx(found[0]["cka_p3"].item(), abs=0.01)
    for term in TERMS:
        assert found[1][f"share_{term}"] == pytest.approx(1, rel=1e-4)
        weight = found[0][f"weight_{term}"].item()
        assert found[1][f"weight_{term}"] == pytest.approx(weight, rel=0.1) and weight > 0


def unbalanced(teacher_files, student="MeanOfP3"):
    cfg = distilling(
        tiny_config(), teacher_files, "sum",
        MODEL__STUDENT__META_ARCHITECTURE=student, MODEL__DISTILLER__BALANCE__PERIOD=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return build_model(cfg)


def test_without_a_balance_shares_and_cosines_are_measured_too(teacher_files, caplog):
    model = unbalanced(teacher_files)
    assert model.distiller.balance is None
    maps = {}
    model.backbone.register_forward_hook(lambda module, args, output: maps.update(output))
    seen = []
    with EventStorage() as storage:
        for storage.iter in range(3):
            losses = model(batch(n=2, seed=storage.iter))
            seen.append({k: v.item() for k, v in model._skd.shares.scalars().items()})
            if storage.iter == 0:
                expected, cosine = _by_hand(losses, "loss_distill_structured_am", maps)
            sum(losses.values()).backward()
    assert seen[0]["share_structured_am"] == pytest.approx(expected, rel=1e-3)
    assert seen[0]["cosine_structured_am"] == pytest.approx(cosine, abs=1e-4)
    assert seen[0] == seen[1] != seen[2]  # PERIOD 2
    assert not any("norm_detector" in key for key in model.state_dict())
    assert "without effect" not in caplog.text  # the period has one


def _by_hand(losses, term, maps):
    """A term's share of the detector's gradient at the maps, and their cosine."""
    maps = [x for name, x in maps.items() if name in ("p2", "p3", "p4", "p5", "p6")]
    own = sum(value for name, value in losses.items() if "distill" not in name)
    both = [
        torch.cat([
            torch.zeros_like(x).flatten() if g is None else g.flatten()
            for x, g in zip(
                maps, torch.autograd.grad(loss, maps, retain_graph=True, allow_unused=True)
            )
        ])
        for loss in (losses[term], own)
    ]  # fmt: skip
    lengths = [x.norm() for x in both]
    return (lengths[0] / lengths[1]).item(), (both[0] @ both[1] / lengths[0] / lengths[1]).item()


def test_a_student_that_allows_one_backward_pass_trains_without_shares(teacher_files, caplog):
    model = unbalanced(teacher_files, "GeneralizedRCNN")
    forward = model.proposal_generator.forward

    def once(*args, **kwargs):
        proposals, losses = forward(*args, **kwargs)
        losses = {k: checkpoint(torch.clone, v, use_reentrant=True) for k, v in losses.items()}
        return proposals, losses

    model.proposal_generator.forward = once
    with EventStorage():
        for _ in range(2):
            losses = model(batch(n=2))
        sum(losses.values()).backward()
    assert caplog.text.count("The log has no shares") == 1 and "use_reentrant" in caplog.text
    assert model._skd.shares.scalars() == {}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
