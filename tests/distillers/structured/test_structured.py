import itertools
from functools import partial

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch.autograd import gradcheck

from skd import add_skd_config
from skd.config.methods import build_distiller
from skd.distillers import PRESETS, StructuredDistiller
from skd.distillers.attention import attention_mask, reduce_norms
from skd.distillers.structured.fused_attention import difference_norms
from skd.distillers.structured.non_local import NonLocalBlock

from . import reference

SETTINGS = {
    "temperature": 0.5,
    "weight_am": 2.0,
    "weight_at": 3.0,
    "weight_nl": 5.0,
    "mask_fusion": "mean_of_softmaxes",
    "channel_mask": True,
    "pool": "mean",
    "adapter": True,
    "reduction": "sum",
    "non_local_width": {4: 3},
    "key_stride": {4: 2},
}


def make(c_s, c_t, stride=4, double=True, **changes):
    """A distiller of one level "p2" whose blocks are not the identity any more."""
    torch.manual_seed(0)
    distiller = StructuredDistiller(**{**SETTINGS, **changes})
    distiller.bind(
        {"p2": (ShapeSpec(channels=c_s, stride=stride), ShapeSpec(channels=c_t, stride=stride))}
    )
    for parameter in distiller.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return distiller.double() if double else distiller


def maps(n, c_s, c_t, h, w, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, c_s, h, w, generator=g, dtype=torch.float64).to(dtype),
        torch.randn(n, c_t, h, w, generator=g, dtype=torch.float64).to(dtype),
    )


def run(distiller, a_s, a_t):
    return {k: v["p2"] for k, v in distiller({"p2": a_s}, {"p2": a_t}).items()}


@pytest.mark.parametrize("fusion", ["mean_of_softmaxes", "softmax_of_sum"])
@pytest.mark.parametrize("channel_mask", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("n,c_s,c_t", [(1, 6, 6), (2, 6, 6), (3, 4, 6), (4, 7, 5)])
def test_every_term_equals_the_equations(fusion, channel_mask, reduction, n, c_s, c_t):
    settings = {
        **SETTINGS,
        "mask_fusion": fusion,
        "channel_mask": channel_mask,
        "reduction": reduction,
    }
    distiller = make(c_s, c_t, **settings)
    a_s, a_t = maps(n, c_s, c_t, 7, 11)
    actual = run(distiller, a_s, a_t)
    level, s, t = distiller.levels["p2"], a_s.numpy(), a_t.numpy()
    expected = {
        "loss_distill_structured_am": 2.0 * reference.masked_feature_loss(level, s, t, settings),
        "loss_distill_structured_at": 3.0 * reference.attention_loss(level, s, t, settings),
        "loss_distill_structured_nl": 5.0 * reference.non_local_loss(level, s, t, settings),
    }
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].item() == pytest.approx(expected[name], rel=1e-6), name


@pytest.mark.parametrize("pool", ["mean", "abs"])
@pytest.mark.parametrize("adapter", [True, False])
def test_every_variant_of_attention_transfer_equals_the_equation(pool, adapter):
    settings = {**SETTINGS, "pool": pool, "adapter": adapter, "weight_am": 0, "weight_nl": 0}
    distiller = make(6, 6, **settings)
    a_s, a_t = maps(2, 6, 6, 7, 11)
    expected = reference.attention_loss(distiller.levels["p2"], a_s.numpy(), a_t.numpy(), settings)
    assert run(distiller, a_s, a_t)["loss_distill_structured_at"].item() == pytest.approx(
        3 * expected, rel=1e-6
    )
    assert len(list(distiller.parameters())) == (4 if adapter else 0)


@pytest.mark.parametrize("affinity", ["dot_product", "embedded_gaussian"])
@pytest.mark.parametrize("norm", ["BN", ""])
@pytest.mark.parametrize("h,w,key_stride", [(7, 11, 2), (16, 16, 4), (3, 1, 8), (1, 1, 2)])
def test_non_local_block_equals_the_literal_form(affinity, norm, h, w, key_stride):
    torch.manual_seed(0)
    block = NonLocalBlock(6, 3, key_stride, affinity=affinity, norm=norm).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = maps(2, 6, 1, h, w)[0]
    expected = reference.non_local_block(block, x.numpy())
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", ["BN", "GN", ""])
def test_non_local_block_starts_as_the_identity(norm):
    x = torch.randn(2, 32, 5, 5)
    assert torch.equal(NonLocalBlock(32, 8, 2, norm=norm)(x), x)


def test_dot_product_never_forms_the_affinity_matrix():
    """No tensor is larger than the input; the affinity matrix would have 64^4 = 16.8 M entries."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(t, torch.Tensor):
                    largest = max(largest, t.numel())
            return out

    block = NonLocalBlock(8, 4, 1)
    with Watch():
        block(torch.randn(1, 8, 64, 64, requires_grad=True)).sum().backward()
    assert largest == 8 * 64 * 64  # the input itself


@pytest.mark.parametrize(
    "fusion,channel_mask,reduction,affinity",
    [
        ("mean_of_softmaxes", True, "sum", "dot_product"),
        ("softmax_of_sum", False, "mean", "embedded_gaussian"),
    ],
)
def test_gradients_equal_numeric_ones(fusion, channel_mask, reduction, affinity):
    # M_s and M_c have no gradient, so the numeric derivative must see them as constants: a
    # temperature this high makes them so
    distiller = make(
        3, 4, temperature=1e9, mask_fusion=fusion, channel_mask=channel_mask,
        reduction=reduction, affinity=affinity,
    )  # fmt: skip
    a_s, a_t = maps(2, 3, 4, 5, 3)
    names = [n for n, _ in distiller.named_parameters()]

    def total(a_s, *parameters):
        state = dict(zip(names, parameters))
        terms = torch.func.functional_call(distiller, state, ({"p2": a_s}, {"p2": a_t}))
        return sum(sum(levels.values()) for levels in terms.values())

    parameters = [p.detach().clone().requires_grad_() for p in distiller.parameters()]
    assert gradcheck(total, (a_s.requires_grad_(), *parameters), atol=1e-4)


def test_masks_are_constants_to_the_gradient():
    a_s, a_t = maps(2, 6, 1, 1, 1)[0].view(2, 6).requires_grad_(), torch.randn(2, 6).double()
    for fusion in ("mean_of_softmaxes", "softmax_of_sum"):
        mask = attention_mask(a_s, a_t, 0.5, fusion)
        assert not mask.requires_grad
        assert torch.allclose(mask.mean(1), torch.ones(2).double())


def test_fusions_by_hand():
    # attention (0, ln 3) and (0, 0), temperature 1
    s, t = torch.tensor([[0.0, np.log(3.0)]]), torch.tensor([[0.0, 0.0]])
    assert attention_mask(s, t, 1.0, "mean_of_softmaxes").tolist()[0] == pytest.approx([0.75, 1.25])
    assert attention_mask(s, t, 1.0, "softmax_of_sum").tolist()[0] == pytest.approx([0.5, 1.5])


def difference_norm(x, reduction, stride=8):
    """Of a difference (N, C, H, W) at one level."""
    norm = partial(reduce_norms, reduction=reduction, strides=[stride], weight=1.0)
    (loss,) = difference_norms([[x]], norm)
    return loss.in_graph()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_zero_difference_is_finite(reduction):
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = difference_norm(x, reduction, stride=4)
    loss.backward()
    assert loss.item() == 0 and torch.equal(x.grad, torch.zeros_like(x))


def test_mean_reduction_equals_sum_at_the_reference_and_ignores_batch_and_size():
    x = torch.randn(1, 2, 100, 168, dtype=torch.float64)  # stride 8 of an 800x1344 image
    two = torch.cat([x, x])
    expected = difference_norm(two, "sum")
    assert difference_norm(two, "mean").item() == pytest.approx(expected.item(), rel=1e-12)
    six = two.repeat(3, 1, 1, 1)
    assert difference_norm(six, "mean").item() == pytest.approx(expected.item(), rel=1e-12)
    tiles = two.repeat(1, 1, 2, 3)  # the same picture six times over
    assert difference_norm(tiles, "mean").item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_give_full_precision_losses(dtype):
    distiller = make(8, 8, double=False)
    # the sum of squares, 1.6e8, is far beyond fp16
    a_s, a_t = (200 * x for x in maps(2, 8, 8, 16, 16, torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = run(distiller, a_s.to(dtype), a_t.to(dtype))
    for name, loss in losses.items():
        assert loss.dtype == torch.float32 and torch.isfinite(loss), name
    expected = run(distiller, a_s.to(dtype).float(), a_t.to(dtype).float())
    assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in expected.items()}


def test_presets_are_the_method_s_table():
    table = {
        "two_stage": (0.5, 7e-5, 4e-3, 7e-5, "mean_of_softmaxes", False),
        "one_stage": (0.1, 4.2e-4, 2.4e-2, 4.2e-4, "mean_of_softmaxes", True),
        "two_stage_paper": (0.1, 7e-5, 4e-3, 7e-5, "softmax_of_sum", True),
        "one_stage_paper": (0.5, 4e-4, 2e-2, 4e-4, "softmax_of_sum", True),
    }
    keys = ("temperature", "weight_am", "weight_at", "weight_nl", "mask_fusion", "channel_mask")
    assert {name: tuple(p[k] for k in keys) for name, p in PRESETS.items()} == table


@pytest.mark.parametrize("strides,preset", [((4, 8, 64), "two_stage"), ((8, 16, 128), "one_stage")])
def test_auto_preset_goes_by_the_finest_level(strides, preset):
    distiller = StructuredDistiller()
    shape = [ShapeSpec(channels=32, stride=s) for s in strides]
    distiller.bind({f"p{i}": (s, s) for i, s in enumerate(shape)})
    assert distiller.preset == preset
    widths = [level.student_non_local.theta.out_channels for level in distiller.levels.values()]
    pools = [level.student_non_local.key_stride for level in distiller.levels.values()]
    assert widths == [64, 64, 16] and pools == [8, 4, 2]


def test_terms_of_weight_zero_have_no_parameters():
    for names in itertools.combinations(["am", "at", "nl"], 2):
        distiller = make(4, 4, **{f"weight_{n}": 0 for n in names})
        losses = run(distiller, *maps(1, 4, 4, 5, 5))
        assert len(losses) == 1
        next(iter(losses.values())).backward()
        assert all(p.grad is not None for p in distiller.parameters())


BAD = [
    ({"preset": "three_stage"}, "PRESET", "is 'three_stage'.*'two_stage', 'one_stage'"),
    ({"mask_fusion": "max"}, "MASK_FUSION", "is 'max'.*'softmax_of_sum'"),
    ({"reduction": "none"}, "REDUCTION", "is 'none'.*'sum', 'mean'"),
    ({"affinity": "cosine"}, "NON_LOCAL.AFFINITY", "is 'cosine'.*'embedded_gaussian'"),
    ({"non_local_norm": "IN"}, "NON_LOCAL.NORM", "is 'IN'.*'SyncBN'"),
    ({"pool": "max"}, "POOL", "is 'max'.*'abs'"),
    ({"temperature": 0}, "TEMPERATURE", "is 0; it must be a number above 0"),
    ({"temperature": "hot"}, "TEMPERATURE", "is 'hot'"),
    ({"weight_am": -1.0}, "WEIGHT_AM", "is -1.0; it must be a number, 0 or above"),
    ({"channel_mask": 1}, "CHANNEL_MASK", "is 1; it must be True or False"),
    ({"key_stride": [[4, 0]]}, "NON_LOCAL.KEY_STRIDES", "is .*whole numbers above 0"),
    ({"non_local_width": [4, 64]}, "NON_LOCAL.WIDTHS", r"is \[4, 64\]; .* list of \[stride, value"),
    ({"non_local_width": "wide"}, "NON_LOCAL.WIDTHS", "is 'wide'"),
]


@pytest.mark.parametrize("change,key,message", BAD)
def test_bad_settings_are_refused_in_the_words_of_the_user(change, key, message):
    (name,) = change
    with pytest.raises(ValueError, match=f"^StructuredDistiller's {name} {message}"):
        StructuredDistiller(**change)
    cfg = get_cfg()
    add_skd_config(cfg)
    node = cfg.MODEL.DISTILLER.STRUCTURED
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = change[name]
    with pytest.raises(ValueError, match=f"^MODEL.DISTILLER.STRUCTURED.{key} {message}"):
        build_distiller(cfg)


def test_channels_that_differ_need_the_adapter():
    with pytest.raises(ValueError, match="student has 4 channels and the teacher 6"):
        make(4, 6, adapter=False)
