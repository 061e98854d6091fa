"""The balance of the terms' gradients."""

import pytest
import torch
from detectron2.engine import launch
from detectron2.layers import ShapeSpec
from detectron2.utils import comm
from torch import nn

from skd.distillers import DISTILLER_REGISTRY, CombinedDistiller, GradientBalance
from skd.distillers.gradient_norms import DETECTOR
from skd.distillers.similarity import MapSimilarity, linear_cka
from tests.processes import leave_together

STRIDES = {"p2": 4, "p3": 8, "p4": 16}
METHODS = sorted(name for name, _ in DISTILLER_REGISTRY)


def make(name, channels=6, **settings):
    """A method over three levels, with random parameters, where nothing is zero at the start."""
    torch.manual_seed(0)
    distiller = DISTILLER_REGISTRY.get(name)(**settings)
    spec = {k: ShapeSpec(channels=channels, stride=s) for k, s in STRIDES.items()}
    distiller.bind({k: (s, s) for k, s in spec.items()})
    for parameter in distiller.parameters():
        nn.init.normal_(parameter, std=0.3)
    return distiller


def inputs(n=2, size=96, channels=6, dtype=torch.float32, seed=1):
    """Maps of student and teacher for images of size x size, and a box in each image."""
    g = torch.Generator().manual_seed(seed)

    def maps():
        shape = {k: (n, channels, size // s, size // s) for k, s in STRIDES.items()}
        return {k: torch.randn(v, generator=g).to(dtype) for k, v in shape.items()}

    boxes = [torch.tensor([[8.0, 8.0, size / 2, size / 2]])] * n
    return {k: x.requires_grad_() for k, x in maps().items()}, maps(), boxes


def detector_loss(maps):
    """Stands for a detector: a mean over images, as detectors' losses are."""
    return sum((x.float().sin() * 1e-2).mean() for x in maps.values())


def gradients(loss, maps):
    found = torch.autograd.grad(loss, list(maps.values()), retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros(0) if g is None else g.flatten().double() for g in found])


def run(balance, distiller, maps, teacher, boxes, iteration=None):
    seen = balance.begin(maps, iteration)
    terms = distiller(seen, teacher, boxes if distiller.needs_boxes else None)
    return balance(detector_loss(maps), maps, terms, seen, distiller.proportions), seen


def shares_of(term, maps):
    """Shares of the detector's gradient, at each level where the term has a gradient."""
    sides = sum(term.values()), detector_loss(maps)
    lengths = [[gradients(side, {k: x}).norm() for k, x in maps.items()] for side in sides]
    return [(a / b).item() for a, b in zip(*lengths) if a > 0]


def check_shares(terms, maps, expected, rel=1e-4):
    for name, levels in terms.items():
        share = expected[name] if isinstance(expected, dict) else expected
        found = shares_of(levels, maps)
        assert found == pytest.approx([share] * len(found), rel=rel), name
        assert bool(found) == bool(share), name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gets_its_share_at_each_level(name):
    maps, teacher, boxes = inputs()
    balance = GradientBalance(share=0.6, per_level=True)
    terms, _ = run(balance, make(name), maps, teacher, boxes)
    # ReviewKD's loss at a level reaches the maps of coarser ones too
    check_shares(terms, maps, 0.6 / len(terms), rel=0.2 if name == "ReviewKD" else 1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gets_its_share_of_all_levels_together(name):
    maps, teacher, boxes = inputs()
    terms, _ = run(GradientBalance(share=0.6), make(name), maps, teacher, boxes)
    own = gradients(detector_loss(maps), maps).norm()
    for levels in terms.values():
        found = gradients(sum(levels.values()), maps).norm() / own
        assert found.item() == pytest.approx(0.6 / len(terms), rel=1e-4)


def test_a_level_that_the_detector_hardly_uses_is_hardly_pulled():
    maps, teacher, boxes = inputs()
    balance, method = GradientBalance(share=0.6, per_level=True), make("PKD")
    detector = maps["p2"].square().mean() + 1e-6 * maps["p3"].mean() + 0 * maps["p4"].sum()
    terms = balance(detector, maps, method(balance.begin(maps), teacher), maps)
    pulls = [gradients(sum(terms["loss_distill_pkd"].values()), {k: maps[k]}) for k in maps]
    own = [gradients(detector, {k: maps[k]}) for k in maps]
    for pull, gradient in zip(pulls, own):
        assert pull.norm().item() == pytest.approx(0.6 * gradient.norm().item(), rel=1e-4)
    scalars = balance.scalars()
    assert scalars["share_pkd"].item() == pytest.approx(0.6, rel=1e-4)


def test_a_loss_of_all_levels_has_one_weight():
    maps, _, _ = inputs()
    balance = GradientBalance(share=0.6, per_level=True)
    total = sum(x.square().sum() for x in maps.values())
    seen = balance.begin(maps)
    terms = balance(detector_loss(maps), maps, {"loss_distill_x": {"all": total}}, seen)
    pull, own = gradients(terms["loss_distill_x"]["all"], maps), gradients(
        detector_loss(maps), maps
    )
    assert pull.norm().item() == pytest.approx(0.6 * own.norm().item(), rel=1e-4)
    assert balance.scalars()["share_x"].item() == pytest.approx(0.6, rel=1e-4)


def test_every_term_of_a_combination_gets_its_share():
    maps, teacher, boxes = inputs()
    method = CombinedDistiller({n: (make(n), w) for n, w in (("FGD", 1.0), ("PKD", 2.0))})
    balance = GradientBalance(share=0.6, per_level=True)
    terms, _ = run(balance, method, maps, teacher, boxes)
    assert len(terms) == 5
    check_shares(terms, maps, {k: 0.2 if "pkd" in k else 0.1 for k in terms})


def test_shares_are_proportions_of_the_terms():
    maps, teacher, boxes = inputs()
    balance = GradientBalance(
        share=3.0,
        per_level=True,
        shares=[("structured_at", 0.5), ("loss_distill_structured_nl", 0)],
    )
    terms, _ = run(balance, make("StructuredDistiller"), maps, teacher, boxes)
    expected = {"am": 2.0, "at": 1.0, "nl": 0.0}
    check_shares(terms, maps, {f"loss_distill_structured_{k}": v for k, v in expected.items()})


@pytest.mark.parametrize("size", [96, 256])
@pytest.mark.parametrize("n", [2, 8])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_shares_depend_on_no_scale(size, n, factor):
    """Neither on image size, nor batch, nor the weights the terms come with."""
    maps, teacher, boxes = inputs(n, size)
    method = CombinedDistiller({"StructuredDistiller": (make("StructuredDistiller"), factor)})
    terms, _ = run(GradientBalance(share=0.3, per_level=True), method, maps, teacher, boxes)
    check_shares(terms, maps, 0.1, rel=1e-3)


def test_norms_are_measured_at_first_and_then_in_every_period():
    maps, teacher, boxes = inputs()
    balance, method = GradientBalance(period=5, burn_in=2), make("PKD")
    measured = []
    for i in range(12):
        run(balance, method, maps, teacher, boxes, i)
        if balance.due():
            measured.append(i)
    assert measured == [0, 1, 5, 10]


def test_norms_are_running_means():
    balance = GradientBalance(momentum=0.75)
    for value in (1.0, 5.0):
        balance._smooth({DETECTOR: torch.tensor(value), "pkd": torch.tensor(value)})
    assert balance.norms()["pkd"].item() == 0.75 * 1 + 0.25 * 5
    balance._smooth({DETECTOR: torch.tensor(3.0), "pkd": torch.tensor(torch.inf)})
    assert balance.norms()[DETECTOR].item() == 0.75 * 2 + 0.25 * 3
    assert balance.norms()["pkd"].item() == 2.0  # an overflow is left out
    for _ in range(100):
        balance._smooth({DETECTOR: torch.tensor(0.0), "pkd": torch.tensor(0.0)})
    assert balance.norms()[DETECTOR].item() < 1e-9
    assert (
        balance.norms()["pkd"].item() == 2.0
    )  # nothing to learn for a while: no weight without end


def test_the_scale_of_gradients_at_half_precision_maps_follows_their_norm():
    maps, _, _ = inputs(dtype=torch.float16)
    size = sum(x.numel() for x in maps.values()) ** 0.5
    balance, sums = GradientBalance(), sum(x.float().sum() for x in maps.values())
    for i in range(6):  # one below what fp16 has, one above it
        terms = {"loss_distill_x": {"p2": 1e9 * sums}}
        balance(1e-9 * sums, maps, terms, balance.begin(maps, i))
    assert balance.norms()[DETECTOR].item() == pytest.approx(1e-9 * size, rel=1e-2)
    assert balance.norms()["x"].item() == pytest.approx(1e9 * size, rel=1e-2)
    norms, scales = balance.norms(), [balance._scale_of(name).clone() for name in (DETECTOR, "x")]
    balance.measure_nothing()  # one process failed: in all of them nothing is known, or smaller
    assert balance.norms() == norms
    assert [s / balance._scale_of(n) for s, n in zip(scales, (DETECTOR, "x"))] == [2.0**8] * 2
    again = GradientBalance()
    again.load_state_dict(balance.state_dict())
    assert again._scale_of("x") == balance._scale_of("x") < 1 < balance.scale == again.scale
    older = {k: v for k, v in balance.state_dict().items() if k != "scale_x"}
    GradientBalance().load_state_dict(older)


def test_the_warm_up_moves_the_layers_and_not_the_student():
    maps, teacher, boxes = inputs()
    balance, method = GradientBalance(warmup=1, share=0.3), make("StructuredDistiller")
    terms, seen = run(balance, method, maps, teacher, boxes, 0)
    loss = sum(v for levels in terms.values() for v in levels.values())
    assert not gradients(loss, maps).any() and gradients(loss, seen).any()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    scalars = balance.scalars()  # the weights are the layers', which the student does not see
    assert scalars["weight_structured_am"] > 0 and scalars["share_structured_am"] == 0
    terms, seen = run(balance, method, maps, teacher, boxes, 1)
    assert seen is maps and balance.scalars()["share_structured_am"] > 0
    loss = sum(v for levels in terms.values() for v in levels.values())
    assert gradients(loss, maps).any()


@pytest.mark.parametrize(
    "decay,expected", [("none", [1, 1, 1]), ("linear", [1, 0.5, 0]), ("cosine", [1, 0.5, 0])]
)
def test_ramp_and_decay(decay, expected):
    balance = GradientBalance(warmup=10, ramp=10, decay=decay, until=1.0, max_iter=120)

    multiplier = balance.multiplier
    assert multiplier(10) == 0.1 and multiplier(14) == 0.5 and multiplier(19) == 1.0
    assert [multiplier(i) for i in (20, 70, 120)] == pytest.approx(expected)


def test_by_default_the_teacher_stops_where_the_length_of_the_training_is_known():
    known, unknown = GradientBalance(max_iter=300), GradientBalance()
    assert [known.is_over(i) for i in (99, 100)] == [False, True]
    assert not unknown.is_over(10**9)


@pytest.mark.parametrize("decay,expected", [("none", [1, 1, 0]), ("cosine", [1, 0.5, 0])])
def test_a_decay_ends_where_the_teacher_stops(decay, expected):
    balance = GradientBalance(decay=decay, until=0.25, max_iter=400)
    found = [0 if balance.is_over(i) else balance.multiplier(i) for i in (0, 50, 100)]
    assert found == pytest.approx(expected)


def test_the_measurement_leaves_the_gradients_of_the_step_alone():
    """The fused losses keep gradients for backward, which a second pass must not touch."""
    maps, teacher, _ = inputs()
    # a map that follows from another: gradients add up on the way back
    deep = {**maps, "p4": nn.functional.max_pool2d(maps["p3"], 2)}
    balance = GradientBalance(share=1.0)
    terms, _ = run(balance, make("StructuredDistiller"), deep, teacher, None)
    expected = balance.weigh(make("StructuredDistiller")(deep, teacher))
    unmeasured = sum(sum(levels.values()) for levels in expected.values())
    measured = sum(sum(levels.values()) for levels in terms.values())
    torch.testing.assert_close(
        gradients(measured, maps), gradients(unmeasured, maps), rtol=1e-6, atol=1e-12
    )


def test_cosines_tell_whether_a_term_pulls_with_the_detector():
    maps, _, _ = inputs()
    balance = GradientBalance()
    seen = balance.begin(maps)
    own = detector_loss(maps)
    balance(
        own,
        maps,
        {"loss_distill_with": {"p2": 3 * own}, "loss_distill_against": {"p2": -own}},
        seen,
    )
    assert balance.cosines["with"].item() == pytest.approx(1)
    assert balance.cosines["against"].item() == pytest.approx(-1)


def test_a_gradient_that_overflows_leaves_the_cosines_as_they_were():
    """An overflow, as of fp16, must not be logged: the trainer would stop at such a number."""
    maps, _, _ = inputs()
    balance = GradientBalance()
    for factor, expected in ((torch.inf, 0), (1.0, 1), (torch.inf, 1)):
        own = (factor * maps["p2"]).sum()
        terms = {"loss_distill_x": {"p2": maps["p2"].sum()}}
        balance(own, maps, terms, balance.begin(maps))
        assert balance.cosines["x"].item() == pytest.approx(expected)
        assert all(value.isfinite() for value in balance.scalars().values())


def test_a_student_that_is_frozen_gets_weight_zero():
    maps, teacher, boxes = inputs()
    maps = {k: x.detach() for k, x in maps.items()}
    terms, _ = run(GradientBalance(), make("StructuredDistiller"), maps, teacher, boxes)
    assert all(v.item() == 0 for levels in terms.values() for v in levels.values())


def test_a_term_without_a_gradient_gets_weight_zero():
    """A term without a gradient, as where student and teacher agree, gets weight zero."""
    maps, teacher, boxes = inputs()
    balance = GradientBalance()
    seen = balance.begin(maps)
    flat = sum((x * 0).sum() for x in maps.values())
    terms = balance(detector_loss(maps), maps, {"loss_distill_flat": {"p2": flat}}, seen)
    assert terms["loss_distill_flat"]["p2"].item() == 0


def test_gradients_at_half_precision_maps_do_not_vanish():
    maps, _, _ = inputs(dtype=torch.float16)
    tiny = sum((x.float() * 1e-8).sum() for x in maps.values())  # below fp16's smallest number
    balance = GradientBalance()
    balance(tiny, maps, {"loss_distill_x": {"p2": tiny}}, balance.begin(maps))
    size = sum(x.numel() for x in maps.values())
    assert balance.norms()[DETECTOR].item() == pytest.approx(1e-8 * size**0.5, rel=1e-2)


def test_norms_are_no_less_exact_under_autocast():
    """In fp16 the squares of such gradients are 0."""
    maps, _, _ = inputs()
    loss = sum((x * 1e-6).sum() for x in maps.values())
    balance = GradientBalance()
    with torch.autocast("cpu", dtype=torch.float16):
        balance(loss, maps, {"loss_distill_x": {"p2": 2 * loss}}, balance.begin(maps))
    size = sum(x.numel() for x in maps.values())
    assert balance.norms()[DETECTOR].item() == pytest.approx(1e-6 * size**0.5, rel=1e-3)
    assert balance.norms()["x"].item() == pytest.approx(2e-6 * size**0.5, rel=1e-3)


def test_what_autocast_takes_in_fp16_behind_maps_of_fp32():
    """As with a normalization in the FPN: gradients underflow on their way to the maps."""
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    layer = torch.nn.Conv2d(8, 8, 3, padding=1)

    def norm_of_loss(balance, product):
        with torch.autocast("cpu", dtype=torch.float16, enabled=product is None):
            y = layer(x) if product is None else product
            loss = (y.float() * 1e-9).sum()
            balance(loss, {"p2": x}, {"loss_distill_x": {"p2": loss}}, balance.begin({"p2": x}))
        return balance.norms()[DETECTOR].item()

    assert norm_of_loss(GradientBalance(), None) == pytest.approx(
        norm_of_loss(GradientBalance(), layer(x)), rel=0.05
    )


def test_the_backward_to_the_maps_is_not_under_autocast():
    """A product that was taken in fp32 is taken back in fp32."""
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    weight = torch.randn(8, 8)
    balance = GradientBalance()
    with torch.autocast("cpu", dtype=torch.float16):
        with torch.autocast("cpu", enabled=False):
            loss = 1e-12 * (x.movedim(1, -1) @ weight).sum()
        balance(loss, {"p2": x}, {"loss_distill_x": {"p2": loss}}, balance.begin({"p2": x}))
    (expected,) = torch.autograd.grad(loss, x)
    assert balance.norms()[DETECTOR].item() == pytest.approx(expected.norm().item(), rel=1e-3)


def test_a_checkpoint_brings_the_norms_back():
    maps, teacher, boxes = inputs()
    method = make("FGD")
    method.balance = GradientBalance(momentum=0.9)
    for _ in range(3):
        run(method.balance, method, maps, teacher, boxes)
    again = make("FGD")
    again.balance = GradientBalance(momentum=0.9)
    assert not again.load_state_dict(method.state_dict()).unexpected_keys
    again.balance.begin(maps)
    method.balance.begin(maps)
    assert again.balance._iteration == 3
    assert {k: v.item() for k, v in again.balance.weights().items()} == {
        k: v.item() for k, v in method.balance.weights().items()
    }


def test_an_older_checkpoints_norms_of_all_levels_together_are_taken_up():
    maps, teacher, boxes = inputs()
    method, again = make("PKD"), make("PKD")
    method.balance, again.balance = GradientBalance(), GradientBalance()
    run(method.balance, method, maps, teacher, boxes)
    old = {k: v.reshape(()) if "norm_" in k else v for k, v in method.state_dict().items()}
    assert not again.load_state_dict(old).unexpected_keys
    assert again.balance.norms() == method.balance.norms()


def test_running_means_are_of_the_total_where_the_share_is():
    """The mean is not of each level: a mean of lengths is not the length of means."""
    maps, teacher, boxes = inputs()
    balance, method = GradientBalance(momentum=0.5), make("PKD")
    lengths = []
    for factor in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])):
        detector = factor[0] * maps["p2"].sum() + factor[1] * maps["p3"].sum()
        balance(detector, maps, method(balance.begin(maps), teacher), maps)
        lengths.append(gradients(detector, maps).norm().item())
    assert balance.norms()[DETECTOR].item() == pytest.approx(sum(lengths) / 2, rel=1e-6)


def test_norms_of_all_levels_together_are_measured_anew():
    """They are what checkpoints had before the norms were of each level."""
    maps, teacher, boxes = inputs()
    method = make("PKD")
    method.balance = GradientBalance(per_level=True)
    run(method.balance, method, maps, teacher, boxes)
    old = {k: v.norm() if "norm_" in k else v for k, v in method.state_dict().items()}
    again = make("PKD")
    again.balance = GradientBalance(per_level=True)
    assert not again.load_state_dict(old).unexpected_keys and not again.balance.norms()
    run(again.balance, again, maps, teacher, boxes)
    assert again.balance.norms().keys() == method.balance.norms().keys()


@pytest.mark.parametrize("before,now", [(["AT"], ["AT", "PKD"]), (["AT", "PKD"], ["AT"])])
def test_a_checkpoint_of_other_terms_or_levels_gives_the_shares_of_those_that_there_are(
    before, now
):
    """As of a run that is resumed with other heads to learn from, or another method."""
    maps, teacher, boxes = inputs()

    def made(names):
        method = CombinedDistiller({name: (make(name), 1.0) for name in names})
        method.balance = GradientBalance(share=0.6, per_level=True, burn_in=1)
        return method

    fewer = [{k: x for k, x in m.items() if k != "p2"} for m in (maps, teacher)]
    for s_maps, t_maps in ((maps, teacher), fewer):
        method, again = made(before), made(now)
        run(method.balance, method, maps, teacher, boxes)
        again.load_state_dict(method.state_dict(), strict=False)
        for distiller in again.methods.values():
            distiller.levels = nn.ModuleDict({k: distiller.levels[k] for k in s_maps})
        terms, _ = run(again.balance, again, s_maps, t_maps, boxes)  # measured in none of these
        assert sorted(again.balance.terms()) == sorted(name.lower() for name in now)
        check_shares(terms, s_maps, 0.6 / len(now))
        assert not again.balance.due()


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"share": -1.0}, r"GradientBalance's share is -1.0; it must be a number, 0 or above"),
        ({"share": True}, "GradientBalance's share is True"),
        ({"shares": [("pkd", "x")]}, "GradientBalance's shares is .* a list of .name, number"),
        ({"period": 0}, "GradientBalance's period is 0; it must be a whole number above 0"),
        ({"momentum": 1.0}, "GradientBalance's momentum is 1.0"),
        ({"decay": "exp"}, "GradientBalance's decay is 'exp'"),
        ({"decay": "linear"}, "GradientBalance's decay is 'linear', a part of the training, whose"),
        ({"until": 0.5}, "GradientBalance's until is 0.5, a part of the training, whose length"),
        ({"warmup": 9, "max_iter": 9}, "warmup and .*'s ramp are 9 iterations, and .* at 3 of 9"),
        ({"until": 0.5, "max_iter": 20, "ramp": 10}, "ramp are 10 .* at 10 of 20 .*until"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        GradientBalance(**settings)


def test_unknown_terms_are_named():
    maps, teacher, boxes = inputs()
    with pytest.raises(ValueError, match=r"shares names \['at'\], but the terms are \['pkd'\]"):
        run(GradientBalance(shares={"at": 1.0}), make("PKD"), maps, teacher, boxes)


def split_step(folder):
    """Run one of several processes on its share of the images, and save what it measured."""
    torch.set_num_threads(1)
    rank, size = comm.get_rank(), comm.get_world_size()
    maps, teacher, boxes = inputs(n=4)
    mine = slice(rank * 4 // size, (rank + 1) * 4 // size)
    maps = {k: x[mine].detach().requires_grad_() for k, x in maps.items()}
    teacher = {k: x[mine] for k, x in teacher.items()}
    method = make("StructuredDistiller", reduction="mean", weight_nl=0.0)
    balance = GradientBalance()
    alike = MapSimilarity()
    alike.measure(maps, teacher)
    run(balance, method, maps, teacher, boxes[mine])
    state = {"alike": dict(alike.levels)}
    if rank == 1:  # a process whose forward failed must not let the other wait
        alike.measure_nothing(len(maps), torch.device("cpu"))
        balance.begin(maps)
        balance.abstain()
    else:
        alike.measure(maps, teacher)
        run(balance, method, maps, teacher, boxes[mine])
    state.update(weights=balance.weights(), scale=balance.scale, last=alike.levels)
    torch.save(state, f"{folder}/{size}_{rank}.pth")
    leave_together()


def test_processes_use_the_weights_of_the_joint_batch(tmp_path):
    launch(split_step, 2, dist_url="auto", args=(str(tmp_path),))
    launch(split_step, 1, args=(str(tmp_path),))
    joint, first, second = (torch.load(tmp_path / f"{n}.pth") for n in ("1_0", "2_0", "2_1"))
    maps, teacher, _ = inputs(n=4)
    for name in STRIDES:
        halves = [linear_cka(maps[name][i], teacher[name][i]) for i in (slice(2), slice(2, 4))]
        torch.testing.assert_close(first["alike"][name], sum(halves) / 2)
        # only the first process has a value in the second iteration
        torch.testing.assert_close(first["last"][name], halves[0])
    assert second.pop("last") == second["alike"] != first.pop("last")
    assert first == second
    # nobody has a value in the second iteration, as one process had none
    for name, weight in joint["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-5, atol=0)
