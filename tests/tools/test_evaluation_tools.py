"""robustness.py, generalize.py and visualize_attention.py, on the teacher that comes with it."""

import json
import os
import re

import cv2
import pytest
import torch
from detectron2.modeling import build_model

from skd.runtime.checkpoint import SafeCheckpointer
from skd.visualization.attention import non_local_blocks, non_local_response
from tests.helpers import distilling, tiny_config
from tests.processes import call_script, run_script

pytestmark = pytest.mark.slow

TEACHER = ("configs/shapes/teacher.yaml", "configs/shapes/teacher.pth")


@pytest.fixture(scope="module")
def poor(tmp_path_factory, teacher_files):
    """An untrained, distilled student: its config and checkpoint."""
    folder = tmp_path_factory.mktemp("poor")
    cfg = distilling(tiny_config(), teacher_files)
    SafeCheckpointer(build_model(cfg), str(folder)).save("model_final")
    plain = tiny_config()
    plain.DATASETS.TRAIN, plain.DATASETS.TEST = ("skd_shapes_train",), ("skd_shapes_val",)
    (folder / "config.yaml").write_text(plain.dump())
    return str(folder / "config.yaml"), str(folder / "model_final.pth")


def models(poor):
    return ["--model", "poor", *poor, "--model", "good", *TEACHER]


def rows(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def test_robustness_resumes_and_reports(shapes, poor, tmp_path):
    pytest.importorskip("imagecorruptions")
    command = [
        "tools/robustness.py", *models(poor), "--corruptions", "fog", "pixelate",
        "--severities", 1, 5, "--workers", 0, "--output", tmp_path,
    ]  # fmt: skip
    run_script(*command, datasets=shapes)
    first = rows(tmp_path / "results.jsonl")
    assert len(first) == 2 * (1 + 2 * 2)
    good = {(r["corruption"], r["severity"]): r["ap"] for r in first if r["model"] == "good"}
    assert good[None, 0]["bbox"] > good["fog", 5]["bbox"] and good[None, 0]["segm"] > 40
    # as after an interruption: one evaluation is gone, and one line is cut off
    lines = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines[:-2]) + lines[-2][:20])
    run_script(*command, datasets=shapes)
    again = rows(tmp_path / "results.jsonl")
    assert sorted(map(str, again)) == sorted(map(str, first))
    report = re.sub(" +", " ", (tmp_path / "README.md").read_text())
    corrupted = [ap["bbox"] for (corruption, _), ap in good.items() if corruption]
    assert f"| good, box AP | {good[None, 0]['bbox']:.1f} | {sum(corrupted) / 4:.1f} |" in report
    assert cv2.imread(str(tmp_path / "segm.png")).std() > 5


def test_models_are_timed_in_turns(shapes, poor, tmp_path):
    call_script(
        "tools/speed.py", *models(poor), "--dataset", "skd_shapes_val", "--images", 2,
        "--repeats", 2, "--threads", 1, "--output", tmp_path,
    )  # fmt: skip
    poor_row, good_row, machine = json.loads((tmp_path / "results.json").read_text())
    assert good_row["ratio"] == good_row["min"] == good_row["max"] == 1.0
    assert poor_row["min"] <= poor_row["ratio"] <= poor_row["max"]
    assert poor_row["parameters"] < good_row["parameters"] > 3e6
    page = re.sub(" +", " ", (tmp_path / "README.md").read_text())
    assert f"| good | {good_row['parameters'] / 1e6:.1f} | {1 / good_row['seconds']:.1f} |" in page
    assert "2 images, one at a time, in 2 rounds" in page and "1 threads on" in page


def test_generalize_reports_all_models(shapes, poor, tmp_path):
    mapping = tmp_path / "mapping.yaml"
    command = ["tools/generalize.py", *models(poor), "--dataset", "skd_shapes_val"]
    run_script(*command, "--output", tmp_path, datasets=shapes)
    (result,) = [r for r in json.load(open(tmp_path / "results.json")) if r["model"] == "good"]
    assert result["ap"]["bbox"] > 40 and len(result["classes"]) == 6
    assert "| skd_shapes_val | good | 6 |" in re.sub(
        " +", " ", (tmp_path / "README.md").read_text()
    )
    mapping.write_text("trapezoid: circle\n")
    printed = run_script(*command, "--classes", mapping, datasets=shapes, ok=False)
    assert "maps ['trapezoid'], which no dataset has" in printed


def test_attention_is_drawn_for_every_image_and_model(poor, teacher_files, tmp_path):
    config = tmp_path / "teacher.yaml"
    with open(teacher_files[0]) as f:
        config.write_text(f.read().replace("tiny_", "skd_shapes_"))  # known in every process
    teacher = ["--model", "teacher", config, teacher_files[1]]
    folder = tmp_path / "images"
    os.makedirs(folder)
    for i, size in enumerate([(128, 128), (70, 200)]):
        cv2.imwrite(str(folder / f"{i}.png"), (torch.rand(*size, 3) * 255).byte().numpy())
    printed = call_script(
        "tools/visualize_attention.py", *models(poor), *teacher, "--input", folder,
        "--pixel", 20, 60, "--blocks", poor[1], "--output", tmp_path / "out",
    )  # fmt: skip
    assert "Pictures are in" in printed
    files = os.listdir(tmp_path / "out")
    for i in range(2):
        for kind in ("spatial", "channel", "non_local"):
            picture = cv2.imread(str(tmp_path / "out" / f"{i}_{kind}.png"))
            assert picture.std() > 5 and min(picture.shape[:2]) > 200
    assert any(name.startswith("events.out.tfevents") for name in files)
    call_script(
        "tools/visualize_attention.py", *models(poor), *teacher, "--input", folder / "0.png",
        "--pixel", 20, 60, "--output", tmp_path / "without_blocks",
    )  # fmt: skip
    for kind, same in (("spatial", True), ("non_local", False)):
        pictures = [
            (tmp_path / o / f"0_{kind}.png").read_bytes() for o in ("out", "without_blocks")
        ]
        assert (pictures[0] == pictures[1]) is same, kind
    printed = call_script(
        "tools/visualize_attention.py", *models(poor), "--input", folder / "1.png",
        "--pixel", 20, 100, ok=False,
    )  # fmt: skip
    assert "is not in" in printed and "200 x 70 pixels" in printed


def test_the_response_is_a_row_of_the_affinity(poor):
    state = torch.load(poor[1])["model"]
    blocks = non_local_blocks(state)
    assert blocks.keys() == {"student", "teacher"} and "p2" in blocks["student"]
    block = blocks["student"]["p3"]
    x = torch.randn(1, 16, 4, 5)
    theta, phi = (
        torch.einsum("kc,chw->khw", block[n]["weight"][:, :, 0, 0], x[0])
        + block[n]["bias"][:, None, None]
        for n in ("theta", "phi")
    )
    affinity = theta.flatten(1).t() @ phi.flatten(1) / 20
    response = non_local_response(x, (2, 3), block)
    assert torch.allclose(response.flatten(), affinity[2 * 5 + 3], atol=1e-5)
    plain = non_local_response(x, (0, 0))
    expected = (x[0, :, 0, 0] * x[0, :, 1, 1]).sum().item() / 20
    assert plain[1, 1].item() == pytest.approx(expected, abs=1e-6)  # sums in another order


def test_a_missing_file_is_named():
    model = ["--model", "a", "nowhere.yaml", "x.pth"]
    printed = call_script("tools/generalize.py", *model, "--dataset", "skd_shapes_val", ok=False)
    assert printed.strip() == "error: --model a: no file 'nowhere.yaml'."  # and no traceback
