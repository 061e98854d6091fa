import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.utils.events import EventStorage

from skd.config.methods import build_distiller
from skd.distillers import DISTILLER_REGISTRY, CombinedDistiller
from skd.distillers.boxes import make_anchors
from skd.distillers.ssim import ssim
from tests.helpers import batch, distilling, tiny_config

from . import reference_methods as reference

METHODS = [
    "FitNets", "AT", "SP", "OFD", "FGFI", "DeFeat", "FGD", "CWD", "MGD", "PKD", "SSIM", "ReviewKD",
]  # fmt: skip
SIZES = {"p2": (12, 9), "p3": (6, 5), "p4": (3, 3)}
STRIDES = {"p2": 4, "p3": 8, "p4": 16}
# of two images 36 x 48: overlapping, reaching out of the image, tiny, and on an edge
BOXES = [
    torch.tensor([[2.0, 3.0, 20.0, 30.0], [10.5, 9.0, 33.0, 47.5], [30.0, 1.0, 31.0, 2.0]]),
    torch.tensor([[-4.0, -3.0, 50.0, 60.0], [4.3, 8.1, 12.2, 16.9]]),
    torch.zeros(0, 4),
]


def make(name, c_s=4, c_t=6, **settings):
    """A method over three levels, in float64, with all its parameters random."""
    torch.manual_seed(0)
    distiller = DISTILLER_REGISTRY.get(name)(**settings)
    distiller.bind(
        {
            level: (ShapeSpec(channels=c_s, stride=s), ShapeSpec(channels=c_t, stride=s))
            for level, s in STRIDES.items()
        }
    )
    for parameter in distiller.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return distiller.double()


def maps(n=3, c_s=4, c_t=6, sizes=SIZES, seed=1, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [
        {
            k: torch.randn(n, c, *size, generator=g, dtype=torch.float64).to(dtype)
            for k, size in sizes.items()
        }
        for c in (c_s, c_t)
    ]


def boxes_for(distiller, n=3):
    return BOXES[:n] if distiller.needs_boxes else None


@pytest.mark.parametrize("c_s,c_t", [(4, 6), (5, 5)])
@pytest.mark.parametrize("name", METHODS)
def test_terms_equal_the_equations(name, c_s, c_t):
    settings = {
        "FGD": {"weight_object": 2.0, "weight_background": 3.0, "weight_global": 5.0},
        "FGFI": {"anchor_scale": 2.0},
        "DeFeat": {"canonical_box_size": 24},
        "CWD": {"temperature": 2.0},
        "MGD": {"weight": 1.0},
    }.get(name, {})
    distiller = make(name, c_s, c_t, **settings)
    student, teacher = maps(c_s=c_s, c_t=c_t)
    state = torch.get_rng_state()
    actual = distiller(student, teacher, boxes_for(distiller))
    s, t = ({k: x.numpy() for k, x in side.items()} for side in (student, teacher))
    expected = {}
    if name == "ReviewKD":
        expected["loss_distill_reviewkd"] = reference.reviewkd(distiller, s, t)
    torch.set_rng_state(state)
    for level in STRIDES if name != "ReviewKD" else ():
        more = {}
        if name == "FGFI":
            more["sizes"] = SIZES
        if name == "MGD":
            more["keep"] = (torch.rand(3, 1, *SIZES[level]) >= distiller.settings.masked).numpy()
        function = getattr(reference, name.lower())
        for term, loss in function(distiller, level, s[level], t[level], BOXES, **more).items():
            expected.setdefault(term, {})[level] = loss
    assert actual.keys() == expected.keys()
    for term, levels in expected.items():
        assert actual[term].keys() == levels.keys()
        for level, loss in levels.items():
            assert actual[term][level].item() == pytest.approx(loss, rel=1e-6), (term, level)
            assert np.isfinite(loss)
    assert any(loss > 1e-9 for levels in expected.values() for loss in levels.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_poor_batch_gives_finite_losses_and_all_gradients(name):
    """No object in one image, constant channels, maps of one position, the student at the goal."""
    distiller = make(name, 5, 5)
    sizes = {"p2": (7, 2), "p3": (3, 1), "p4": (1, 1)}
    student, _ = maps(2, 5, 5, sizes)
    for x in student.values():
        x[:, 0] = 0
    teacher = {k: x.clone() for k, x in student.items()}
    student = {k: x.requires_grad_() for k, x in student.items()}
    boxes = [BOXES[2], BOXES[0]] if distiller.needs_boxes else None
    terms = distiller(student, teacher, boxes)
    total = sum(loss for levels in terms.values() for loss in levels.values())
    total.backward()
    assert total.isfinite()
    tensors = [*distiller.parameters(), *student.values()]
    for tensor in tensors:
        assert tensor.grad is not None and tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_maps_are_compared_in_fp32(name):
    distiller = make(name).float()
    student, teacher = maps(dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = distiller(student, teacher, boxes_for(distiller))
    losses = [loss for levels in terms.values() for loss in levels.values()]
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses)


@pytest.mark.parametrize("name", METHODS)
def test_a_detector_learns_by_each(name, teacher_files):
    """Each method, built from the config, reduces its terms and keeps nothing between steps."""
    cfg = distilling(tiny_config(), teacher_files, MODEL__DISTILLER__NAME=name)
    torch.manual_seed(0)
    model = build_model(cfg)
    # its losses only, so that they have to shrink
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    inputs, totals = batch(), []
    with EventStorage() as storage:
        for _ in range(8):
            losses = model(inputs)
            distill = {k: v for k, v in losses.items() if k.startswith("loss_distill_")}
            total = sum(distill.values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(total.item())
        assert any(key.startswith("distill/") for key in storage.latest())
    assert distill and all(p.grad is not None for p in model.distiller.parameters())
    assert min(totals[-3:]) < totals[0]
    kept = [v for m in model.distiller.modules() for v in vars(m).values()]
    assert not any(isinstance(v, torch.Tensor) and v.requires_grad for v in kept)


def test_the_student_is_pulled_towards_the_teacher_near_objects_only():
    distiller = make("FGFI", 3, 3, anchor_scale=2.0)
    student, teacher = maps(1, 3, 3)
    student = {k: x.requires_grad_() for k, x in student.items()}
    box = [torch.tensor([[0.0, 0.0, 8.0, 8.0]])]
    terms = distiller(student, teacher, box)["loss_distill_fgfi"]
    sum(terms.values()).backward()
    grad = student["p2"].grad.abs().sum(1)[0]
    assert grad[:3, :3].min() > 0 and grad[8:, 6:].max() == 0


def test_ofd_averages_its_margin_over_the_images_seen():
    distiller = make("OFD", 3, 3)
    seen = []
    for seed in range(3):
        student, teacher = maps(2, 3, 3, seed=seed)
        seen.append(teacher["p2"])
        distiller(student, teacher)
    negative = torch.cat(seen)[:, 1]
    layers = distiller.levels["p2"]
    margin = layers.negative_sum / layers.negative_count
    assert margin[1].item() == pytest.approx(negative[negative < 0].mean().item())
    assert "levels.p2.negative_sum" in distiller.state_dict()


def test_two_methods_at_once(teacher_files):
    names = ["StructuredDistiller", "FGD"]
    # as many channels as the teacher: FGD then has no random adapter
    cfg = distilling(tiny_config(fpn=24), teacher_files)
    single = {}
    for name in names:
        cfg.MODEL.DISTILLER.NAME = name
        torch.manual_seed(0)
        with EventStorage():
            single.update(build_model(cfg)(batch()))
    cfg.MODEL.DISTILLER.COMBINE = [[names[0], 1.0], [names[1], 0.25]]
    torch.manual_seed(0)
    model = build_model(cfg)
    assert isinstance(model.distiller, CombinedDistiller)
    with EventStorage():
        both = model(batch())
    for name, loss in both.items():
        weight = 0.25 if "fgd" in name else 1.0
        assert loss.item() == pytest.approx(weight * single[name].item(), rel=1e-4), name
    sum(both.values()).backward()
    assert all(p.grad is not None for p in model.distiller.parameters())


@pytest.mark.parametrize(
    "combine",
    [
        [["PKD"]],
        [["PKD", 0]],
        [["PKD", "much"]],
        [["PKD", 1.0], ["PKD", 2.0]],
        ["PKD", "FGD"],
    ],
)
def test_a_bad_combination_is_an_error(combine):
    cfg = tiny_config()
    cfg.MODEL.DISTILLER.COMBINE = combine
    with pytest.raises(ValueError, match=r"COMBINE is .* list of \[method, weight\]"):
        build_distiller(cfg)


def test_an_unknown_method_is_an_error():
    cfg = tiny_config()
    cfg.MODEL.DISTILLER.COMBINE = [["PDK", 1.0]]
    with pytest.raises(ValueError, match=r"'PDK' \(MODEL.DISTILLER.COMBINE\). Known: AT, CWD"):
        build_distiller(cfg)


@pytest.mark.parametrize(
    "key,value,expected",
    [
        ("FITNETS.WEIGHT", -1.0, "a number, 0 or above"),
        ("FGD.TEMPERATURE", 0.0, "a number above 0"),
        ("FGD.WEIGHT_GLOBAL", "x", "a number, 0 or above"),
        ("MGD.MASKED", 1.0, "a number, 0 or above and below 1"),
        ("FGFI.THRESHOLD", 1.5, "a number, 0 or above and below 1"),
        ("FGFI.ASPECT_RATIOS", [0.5, -1], "a list of numbers above 0"),
        ("PKD.NUM_LEVELS", 0, "a whole number above 0"),
    ],
)
def test_a_bad_setting_names_its_key(key, value, expected):
    cfg = tiny_config()
    cfg.merge_from_list([f"MODEL.DISTILLER.{key}", value])
    names = {name.upper(): name for name, _ in DISTILLER_REGISTRY}
    cfg.MODEL.DISTILLER.NAME = names[key.split(".")[0]]
    with pytest.raises(ValueError, match=rf"MODEL.DISTILLER.{key} is .*; it must be {expected}"):
        build_distiller(cfg)


def test_images_without_boxes_are_an_error(teacher_files):
    cfg = distilling(tiny_config(), teacher_files, MODEL__DISTILLER__NAME="FGD")
    model = build_model(cfg)
    with pytest.raises(ValueError, match="FGD, .* needs the objects' upright boxes"):
        model.train()([{"image": torch.zeros(3, 8, 8)}])


def test_review_needs_one_width():
    distiller = DISTILLER_REGISTRY.get("ReviewKD")()
    shapes = {
        k: (ShapeSpec(channels=4, stride=s), ShapeSpec(channels=s, stride=s))
        for k, s in STRIDES.items()
    }
    with pytest.raises(ValueError, match=r"levels have \[4, 8, 16\] channels"):
        distiller.bind(shapes)


TWO_STAGE, ONE_STAGE = (4, 8, 16, 32, 64), (8, 16, 32, 64, 128)


@pytest.mark.parametrize(
    "name,strides,expected",
    [
        ("FGD", TWO_STAGE, 4),
        ("FGD", ONE_STAGE, 5),
        ("MGD", TWO_STAGE, 4),
        ("MGD", ONE_STAGE, 5),
        ("PKD", TWO_STAGE, 4),
        ("PKD", ONE_STAGE, 4),
        ("CWD", TWO_STAGE, 5),
    ],
)
def test_levels_are_the_authors(name, strides, expected):
    distiller = DISTILLER_REGISTRY.get(name)()
    spec = {f"p{i}": ShapeSpec(channels=4, stride=s) for i, s in enumerate(strides)}
    distiller.bind({level: (s, s) for level, s in spec.items()})
    sizes = {level: (3, 3) for level in spec}
    student, teacher = maps(1, 4, 4, sizes, dtype=torch.float32)
    terms = distiller(student, teacher, boxes_for(distiller, 1))
    assert all(list(levels) == list(spec)[:expected] for levels in terms.values())


def test_levels_may_be_more_than_the_authors():
    distiller = DISTILLER_REGISTRY.get("PKD")(num_levels=5)
    spec = {f"p{i}": ShapeSpec(channels=4, stride=s) for i, s in enumerate(TWO_STAGE)}
    distiller.bind({level: (s, s) for level, s in spec.items()})
    assert list(distiller.levels) == list(spec)


@pytest.mark.parametrize("name", ["FGFI", "DeFeat"])
def test_the_first_gradient_is_as_small_as_the_authors(name):
    """It passes through the adapter's first weights, of standard deviation 1e-4."""
    grads = []
    for std in (1e-4, 1e-2):
        torch.manual_seed(0)
        distiller = DISTILLER_REGISTRY.get(name)(adapter_std=std)
        spec = (ShapeSpec(channels=64, stride=4),) * 2
        distiller.bind({"p2": spec})
        assert distiller.levels["p2"].weight.std().item() == pytest.approx(0.88 * std, rel=0.02)
        student, teacher = maps(1, 64, 64, {"p2": (12, 9)}, dtype=torch.float32)
        x = student["p2"].requires_grad_()
        terms = distiller({"p2": x}, teacher, BOXES[:1])
        sum(levels["p2"] for levels in terms.values()).backward()
        grads.append(x.grad.norm().item())
    assert grads[1] / grads[0] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("name", ["FGFI", "ReviewKD"])
def test_what_levels_share_is_not_kept(name):
    distiller = make(name)
    before = dict(vars(distiller))
    distiller(*maps(), boxes_for(distiller))
    assert vars(distiller) == before
    with pytest.raises(KeyError):  # nor after a step that failed halfway
        distiller(maps()[0], {"p4": maps()[1]["p4"]}, boxes_for(distiller))
    assert vars(distiller) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_anchors_are_detectron2_s(dtype):
    ratios = [0.5, 1.0, 2.0]
    theirs = DefaultAnchorGenerator(sizes=[[20.0]], aspect_ratios=[ratios], strides=[8])
    x = torch.zeros(1, 2, 3, 5, dtype=dtype)
    (expected,) = theirs([x])
    ours = make_anchors(x, 8, 20.0, ratios)
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype != torch.float64:
        assert torch.equal(ours, expected.tensor)
    torch.testing.assert_close(ours.float(), expected.tensor)


def test_ssim_keeps_its_digits_where_a_channel_is_far_from_0():
    """Variances are differences of squares, of which a GPU's TF32 would leave three digits."""
    torch.manual_seed(0)
    x, y = 100 + 0.1 * torch.randn(2, 2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ssim(x.float(), y.float()).double(), ssim(x, y), rtol=0, atol=2e-3)
