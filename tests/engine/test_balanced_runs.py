"""The balance in real models: gradient accumulation, mixed precision. Resume: tests/modeling."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

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
