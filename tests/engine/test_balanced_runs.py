"""The balance in real models: gradient accumulation, mixed precision. Resume: tests/modeling."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.utils.checkpoint import checkpoint

from skd import DISTILLER_REGISTRY
from skd.distillers.gradient_norms import GradientNorms
from skd.distillers.shares import SETTLING
from skd.runtime.step import build_trainer
from tests.helpers import DEVICES, batch, distilling, tiny_config
from tests.runtime.test_step import MeanOfP3  # noqa: F401, a name in the registry

TERMS = [f"structured_{term}" for term in ("am", "at", "nl")]


def balanced(teacher_files, **changes):
    """Whose losses are means over images, so that a batch in parts has the same ones."""
    cfg = distilling(
        tiny_config(), teacher_files, "mean", balance=True,
        MODEL__STUDENT__META_ARCHITECTURE="MeanOfP3",
        MODEL__RESNETS__NORM="FrozenBN", MODEL__FPN__NORM="",
        MODEL__DISTILLER__STRUCTURED__NON_LOCAL__NORM="", MODEL__DISTILLER__BALANCE__SHARE=3.0,
        **changes,
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


def in_precision(model, precision, n):
    """What there is to see after so many steps on one batch; None for fp32."""
    device = next(model.parameters()).device.type
    with EventStorage() as storage:
        for storage.iter in range(n):
            with torch.autocast(device, dtype=precision, enabled=precision is not None):
                losses = model(batch(n=2))
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    measured = model.distiller.balance or model._skd.shares
    return {k: v.item() for k, v in {**measured.scalars(), **model._skd.alike.scalars()}.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_in_mixed_precision_the_shares_are_the_same(precision, device, teacher_files):
    # fp16 takes a few steps to find the scale of its gradients
    full, half = (
        in_precision(balanced(teacher_files).to(device), p, SETTLING) for p in (None, precision)
    )
    assert half["cka_p3"] == pytest.approx(full["cka_p3"], abs=0.01)
    assert half["norm_detector"] == pytest.approx(full["norm_detector"], rel=0.1)
    for term in TERMS:
        assert half[f"share_{term}"] == pytest.approx(1, rel=1e-4)
        assert half[f"weight_{term}"] == pytest.approx(full[f"weight_{term}"], rel=0.1)
        assert full[f"weight_{term}"] > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", sorted(dict(DISTILLER_REGISTRY)))
def test_the_weights_of_each_method_in_fp16_are_those_in_fp32(method, device, teacher_files):
    """Of some the gradients overflow fp16, of others their squares are 0 there."""
    changes = {"MODEL__DISTILLER__NAME": method}
    full, half = (
        in_precision(balanced(teacher_files, **changes).to(device), p, SETTLING)
        for p in (None, torch.float16)
    )
    found = [name for name in full if name.startswith("weight_")]
    assert found and all(full[name] > 0 for name in found)
    for name in found:
        assert half[name] == pytest.approx(full[name], rel=0.1)


def test_in_fp16_shares_without_a_balance_are_shown_once_their_scale_is_found(teacher_files):
    """The published weights pull a thousand times as hard here: at first they overflow."""
    strong = {f"MODEL__DISTILLER__STRUCTURED__WEIGHT_{t}": 1.0 for t in ("AM", "AT", "NL")}
    full = in_precision(unbalanced(teacher_files, **strong), None, 1)
    models = [unbalanced(teacher_files, **strong) for _ in range(2)]
    assert not any("share" in k for k in in_precision(models[0], torch.float16, SETTLING - 1))
    half = in_precision(models[1], torch.float16, SETTLING)
    assert half["norm_detector"] == pytest.approx(full["norm_detector"], rel=0.1)
    for term in TERMS:
        assert half[f"share_{term}"] == pytest.approx(full[f"share_{term}"], rel=0.1)
        assert full[f"share_{term}"] > 0


def unbalanced(teacher_files, student="MeanOfP3", **changes):
    cfg = distilling(
        tiny_config(), teacher_files, "sum",
        MODEL__STUDENT__META_ARCHITECTURE=student, MODEL__DISTILLER__BALANCE__PERIOD=2, **changes,
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


@pytest.mark.parametrize(
    "text",
    ["DefaultCPUAllocator: can't allocate memory", "DataLoader worker (pid 7) is killed by signal"],
)
def test_what_ends_a_step_is_not_taken_for_a_graph_that_allows_one_pass(
    text, teacher_files, monkeypatch
):
    model = unbalanced(teacher_files)

    def fail(*args):
        raise RuntimeError(text)

    monkeypatch.setattr(GradientNorms, "_gradients", fail)
    with EventStorage(0), pytest.raises(RuntimeError, match=text[:12]):
        model(batch(n=2))
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
