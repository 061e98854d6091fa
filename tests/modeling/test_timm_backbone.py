import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from skd import TimmBackbone, add_skd_config, student_config, student_of
from tests.helpers import batch, distilling, tiny_config

timm = pytest.importorskip("timm")

NETWORKS = ["mobilenetv3_small_100", "mobilenetv2_100", "efficientnet_b0", "convnext_atto"]


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_are_as_declared(name):
    model = TimmBackbone(name).eval()
    shapes = model.output_shape()
    assert list(shapes) == ["res2", "res3", "res4", "res5"]
    with torch.no_grad():
        maps = model(torch.randn(2, 3, 64, 96))
    assert list(maps) == list(shapes)
    for name, x in maps.items():
        spec = shapes[name]
        assert x.shape == (2, spec.channels, 64 // spec.stride, 96 // spec.stride)


def test_frozen_norms_have_nothing_to_train_and_keep_the_activation():
    torch.manual_seed(0)
    trained = TimmBackbone("mobilenetv3_small_100").eval()
    frozen = TimmBackbone("mobilenetv3_small_100", norm="FrozenBN").train()
    frozen.load_state_dict(trained.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(trained(image).values(), frozen(image).values()):
            assert torch.allclose(a, b, atol=1e-4)
    of_norms = [[n for n, _ in m.named_parameters() if "bn" in n] for m in (trained, frozen)]
    assert of_norms[0] and not of_norms[1]


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
def test_under_an_fpn_as_a_student(kind, teacher_files):
    student = tiny_config(kind, MODEL__TIMM__NAME="mobilenetv3_small_100")
    middle = "retinanet_" if kind == "retinanet" else ""
    student.MODEL.BACKBONE.NAME = f"build_{middle}timm_fpn_backbone"
    model = build_model(distilling(student, teacher_files))
    with EventStorage():
        losses = model(batch())
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    # its config needs this project, and says what for; that of other students does not
    plain = student_config(student)
    assert plain.MODEL.TIMM.NAME == "mobilenetv3_small_100" and "TEACHER" not in plain.MODEL
    assert "TIMM" not in student_config(tiny_config(kind)).MODEL
    again = get_cfg()
    add_skd_config(again)
    again.merge_from_other_cfg(plain)
    build_model(again).load_state_dict(student_of(model).state_dict())


def test_channels_and_strides_as_specified():
    shapes = TimmBackbone("mobilenetv3_large_100").output_shape()
    assert shapes["res5"] == ShapeSpec(channels=960, stride=32)


@pytest.mark.parametrize(
    "args,message",
    [
        (
            ("mobilenet_v9",),
            "^TimmBackbone's name is 'mobilenet_v9', which .* does not have. Similar: ",
        ),
        (("mobilenetv3_small_100", False, "LN"), "norm is 'LN'.*'BN', 'SyncBN', 'FrozenBN'"),
        (("vit_tiny_patch16_224",), "'vit_tiny_patch16_224'.*strides .*16.*needs those of 8"),
    ],
)
def test_bad_settings_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(*args)


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "convnext_atto"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_file_of_one_s_own_is_where_it_starts(name, nested, tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model(name)  # with the head, as such files are
    state = whole.state_dict()
    torch.save({"state_dict": state} if nested else state, tmp_path / "w.pth")
    model = TimmBackbone(name, weights=str(tmp_path / "w.pth")).body.eval()
    sums = {v.double().sum().item() for v in state.values() if v.dim() > 1}
    assert all(p.double().sum().item() in sums for p in model.parameters() if p.dim() > 1)


def test_a_file_of_another_model_is_refused(tmp_path):
    torch.save({"a.weight": torch.randn(3, 3)}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match="TimmBackbone's weights is .*w.pth.*takes none of its 1 tensors"
    ):
        TimmBackbone("mobilenetv3_small_100", weights=str(tmp_path / "w.pth"))
    with pytest.raises(
        FileNotFoundError, match="TimmBackbone's weights is .*gone.pth.*no such file"
    ):
        TimmBackbone("mobilenetv3_small_100", weights=str(tmp_path / "gone.pth"))
    with pytest.raises(ValueError, match="only one of them"):
        TimmBackbone("mobilenetv3_small_100", pretrained=True, weights=str(tmp_path / "w.pth"))
