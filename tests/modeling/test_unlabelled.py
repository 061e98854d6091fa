"""A step with images without labels: the detector's own losses know nothing of them."""

import pytest
import torch
from detectron2.engine import launch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from skd.engine import wrap_data_parallel
from skd.modeling.unlabelled import TERM
from skd.runtime.unlabelled import MARK, is_unlabelled
from tests.helpers import DEVICES, batch, distilling, step, take, tiny_config
from tests.processes import leave_together
from tests.runtime.test_unlabelled import OTHERS, joined


def unlabelled(n=1, seed=9, height=64, width=96):
    return [
        {"image": x["image"], "height": height, "width": width, MARK: []}
        for x in batch(n, height, width, seed=seed)
    ]


def build(teacher_files, kind="mask_rcnn", balance=True, **changes):
    torch.manual_seed(0)
    return build_model(distilling(tiny_config(kind), teacher_files, balance=balance, **changes))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
def test_all_other_losses_are_those_without_them_to_the_bit(
    teacher_files, kind, device, monkeypatch
):
    # or its weights' gradients are summed up in no fixed order on a GPU
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    model, baseline = (build(teacher_files, kind).to(device) for _ in range(2))
    dropout = nn.Dropout2d(0.5)  # a backbone that draws
    for m in (model, baseline):
        m.backbone.register_forward_pre_hook(lambda _, inputs: (dropout(inputs[0]),))
    for iteration in range(2):
        losses, grads = step(model, batch() + unlabelled(), iteration)
        after = torch.rand(1)
        expected, of_baseline = step(baseline, batch(), iteration)
        after_baseline = torch.rand(1)
        assert losses.pop(TERM) > 0
        assert losses.keys() == expected.keys()
        if device == "cuda":  # the weights follow from sums in no fixed order, see below
            for k in [k for k in expected if "distill" in k]:
                torch.testing.assert_close(losses[k], expected.pop(k), rtol=1e-3, atol=0)
        assert expected and all(torch.equal(losses[k], v) for k, v in expected.items())
        assert torch.equal(after, after_baseline)
    assert any(not torch.equal(grads[k], of_baseline[k]) for k in grads if "backbone" in k)
    heads = [k for k in grads if k.split(".")[0] not in ("backbone", "distiller")]
    assert heads and all(torch.equal(grads[k], of_baseline[k]) for k in heads)
    # running means, and the balance; the distiller's own statistics nobody uses
    state, expected = model.state_dict(), baseline.state_dict()
    expected = {k: v for k, v in expected.items() if not k.startswith("distiller.levels")}
    if device == "cuda":  # a backward pass measures it, whose sums are in no fixed order there
        norm = "distiller.balance.norm_detector"
        torch.testing.assert_close(state[norm], expected.pop(norm), rtol=1e-3, atol=0)
    assert [k for k, v in expected.items() if not torch.equal(state[k], v)] == []


def test_the_term_is_the_distillers_at_the_weights_of_the_labelled_images(teacher_files):
    model = build(teacher_files, MODEL__DISTILLER__UNLABELLED_WEIGHT=0.5)
    losses, _ = step(model, batch() + unlabelled())
    with torch.no_grad():
        x = unlabelled()
        maps = model.backbone(model.preprocess_image(x).tensor)
        theirs = model.teacher(x, "BGR")
        terms = model.distiller(maps, {k: theirs[k] for k in maps})
    weighted = model.distiller.balance.weigh(terms)
    expected = 0.5 * sum(sum(levels.values()) for levels in weighted.values())
    torch.testing.assert_close(losses[TERM], expected, rtol=1e-4, atol=1e-6)


def test_the_weight_and_every(teacher_files):
    whole, _ = step(build(teacher_files), batch() + unlabelled())
    none, grads = step(
        build(teacher_files, MODEL__DISTILLER__UNLABELLED_WEIGHT=0.0), batch() + unlabelled()
    )
    _, expected = step(build(teacher_files), batch())
    assert none[TERM] == 0 and all(torch.equal(grads[k], v) for k, v in expected.items())
    model = build(teacher_files, MODEL__DISTILLER__EVERY=2)
    every, _ = step(model, batch() + unlabelled())
    torch.testing.assert_close(every[TERM], 2 * whole[TERM])
    between, _ = step(model, batch() + unlabelled(), iteration=1)
    assert not [k for k in between if "distill" in k]


@pytest.mark.parametrize(
    "name", ["PKD", "CWD", "MGD", "AT", "SP", "OFD", "FitNets", "ReviewKD", "SSIM"]
)
def test_methods_without_boxes_learn_from_them(teacher_files, name):
    model, baseline = (build(teacher_files, MODEL__DISTILLER__NAME=name) for _ in range(2))
    for iteration in range(2):  # in the first nothing shows that a method has kept of them
        losses, _ = step(model, batch() + unlabelled(2), iteration)
        expected, _ = step(baseline, batch(), iteration)
        term = losses.pop(TERM)
        assert term.isfinite() and term > 0
        assert losses.keys() == expected.keys()
        assert all(torch.equal(losses[k], v) for k, v in expected.items())


def test_methods_that_need_boxes_are_refused_by_name(teacher_files):
    combined = [["PKD", 1.0], ["FGD", 1.0], ["FGFI", 1.0]]
    model = build(teacher_files, MODEL__DISTILLER__COMBINE=combined)
    with pytest.raises(ValueError, match="^FGD, FGFI cannot learn from images without labels"):
        step(model, batch() + unlabelled())


def test_a_student_that_needs_more_than_an_image_is_named(teacher_files):
    model = build(teacher_files)
    prepare = model.preprocess_image
    model.preprocess_image = lambda images: [x["instances"] for x in images] and prepare(images)
    with pytest.raises(ValueError, match="The student, a GeneralizedRCNN, needs 'instances' of ea"):
        step(model, batch() + unlabelled())
    model.preprocess_image = lambda images: {}["image"] and prepare(images)  # its own fault
    with pytest.raises(KeyError, match="image"):
        step(model, batch() + unlabelled())


def test_a_batch_needs_labelled_images(teacher_files):
    with pytest.raises(ValueError, match="None of the batch's 2 images has labels"):
        step(build(teacher_files), unlabelled(2))


def test_in_the_warm_up_the_student_is_left_alone(teacher_files):
    changes = {"MODEL__DISTILLER__BALANCE__WARMUP": 5, "SOLVER__MAX_ITER": 10}
    _, grads = step(build(teacher_files, **changes), batch() + unlabelled())
    _, expected = step(build(teacher_files, **changes), batch())
    student = [k for k in grads if not k.startswith("distiller.")]
    assert all(torch.equal(grads[k], expected[k]) for k in student)
    assert any(not torch.equal(grads[k], expected[k]) for k in grads.keys() - set(student))


def test_under_autocast(teacher_files):
    model = build(teacher_files)
    with EventStorage(0), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch() + unlabelled())
    assert losses[TERM].dtype == torch.float32 and losses[TERM].isfinite()
    sum(losses.values()).backward()


@pytest.mark.parametrize("weight", [-1, "1", True, float("inf"), None])
def test_a_wrong_weight_is_named(teacher_files, weight):
    from skd import DistillRCNN

    model = build(teacher_files)
    with pytest.raises(ValueError, match="DistillRCNN's unlabelled_weight is .*; it must be a num"):
        DistillRCNN(
            student=nn.Module(), teacher=model.teacher, distiller=model.distiller,
            unlabelled_weight=weight,
        )  # fmt: skip


def images_of_steps():
    """Ids of both kinds of images in this process's steps, of a loader of nine without labels."""
    records = [{**r, "image_id": 200 + i} for i, r in enumerate(OTHERS)]  # none is broken
    batches = take(joined(records=records), 8)
    return [[(is_unlabelled(x), x["image_id"]) for x in images] for images in batches]


def worker(teacher_files, out):
    torch.set_num_threads(1)
    model = build(teacher_files, MODEL__RESNETS__NORM="FrozenBN", MODEL__FPN__NORM="")
    model = wrap_data_parallel(model, broadcast_buffers=False)
    assert not model.find_unused_parameters
    rank = comm.get_rank()
    inputs = batch(4)[2 * rank :][:2] + unlabelled(2)[rank:][:1]
    for iteration in range(2):
        losses, grads = step(model, inputs, iteration)
    torch.save((losses, grads, images_of_steps()), f"{out}/{rank}")
    leave_together()


@pytest.mark.slow
def test_two_processes_agree(teacher_files, tmp_path):
    launch(worker, 2, dist_url="auto", args=(teacher_files, str(tmp_path)))
    results = [torch.load(tmp_path / str(i)) for i in range(2)]
    (first, grads, images), (second, others, further) = results
    assert first[TERM] != second[TERM]
    for whole, here, there in zip(images_of_steps(), images, further):
        assert [kind for kind, _ in here] == [kind for kind, _ in there] == [False, False, True]
        others_of = [[i for unlabelled, i in x if unlabelled] for x in (here, there, whole)]
        assert sorted(others_of[0] + others_of[1]) == sorted(others_of[2])  # as one would have them
    assert grads.keys() == others.keys()
    assert all(torch.equal(grads[k], v) for k, v in others.items())
