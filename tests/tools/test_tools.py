"""The commands in tools/, on a few images and iterations."""

import importlib.util
import json
import os
import re

import cv2
import pytest
import torch

from skd.runtime.trust import CheckpointError
from skd.study.slim_checkpoint import slim
from tests.processes import call_script, run_script

pytestmark = pytest.mark.slow


def tool(name, *args, **kwargs):
    return run_script(os.path.join("tools", name), *args, **kwargs)


def test_demo_writes_everything_it_promises(shapes, tmp_path):
    out = tmp_path / "demo"
    # at this rate nothing is learned, so that both students can be compared; the teacher is there
    # in the first of the two iterations
    options = ["--iterations", 2, "--", "SOLVER.BASE_LR", "1e-12"]
    printed = tool("demo.py", "--output", out, *options, datasets=shapes)
    assert "iteration" in printed and printed.rstrip().endswith(("┘", "+"))
    results = json.load(open(out / "results.json"))
    assert list(results) == ["teacher", "baseline", "distilled"]
    for name, ap in results.items():
        assert list(ap) == ["bbox", "segm"] and all(0 <= v <= 100 for v in ap.values())
        files = os.listdir(out / name)
        assert {"config.yaml", "model_final.pth", "metrics.json"} <= set(files)
        assert any(f.startswith("events.out.tfevents") for f in files)
    assert results["teacher"]["bbox"] > 30 > results["baseline"]["bbox"]
    for picture in ("attention.png", "predictions.png", "curves.png"):
        image = cv2.imread(str(out / picture))
        assert min(image.shape[:2]) > 200 and image.std() > 10
    report = (out / "report.md").read_text()
    assert re.search(r"\| teacher +\|( +[\d.]+ \|){2} +[1-9]\d* \|", report)
    assert "ms / image" in report and "skd.train_net --config-file" in report
    check_equal_students(out)


def check_equal_students(out):
    """Same first weights and images: they differ by the losses of distillation alone."""
    baseline, distilled = (
        json.loads(open(out / name / "metrics.json").readline())
        for name in ("baseline", "distilled")
    )
    for key in ("loss_cls", "loss_mask", "loss_rpn_cls", "loss_box_reg"):
        assert baseline[key] == distilled[key], key
    assert distilled["loss_distill_structured_am"] > 0


def test_demo_deletes_nothing_but_a_demo(tmp_path):
    (tmp_path / "baseline").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    printed = call_script("tools/demo.py", "--output", tmp_path, ok=False)
    assert "holds more than a demo (thesis.tex)" in printed
    assert (tmp_path / "baseline").exists() and (tmp_path / "thesis.tex").exists()


def test_slim_checkpoint(tmp_path):
    state = {"a.weight": torch.randn(3), "a.n": torch.tensor(7), "distiller.x": torch.zeros(9)}
    torch.save({"model": state, "trainer": {}, "iteration": 9}, tmp_path / "in.pth")
    call_script("tools/slim_checkpoint.py", tmp_path / "in.pth", tmp_path / "out.pth")
    slim = torch.load(tmp_path / "out.pth")
    assert slim["iteration"] == 9 and list(slim["model"]) == ["a.weight", "a.n"]
    assert list(slim) == ["model", "iteration"]
    assert slim["model"]["a.weight"].dtype == torch.float16 and slim["model"]["a.n"] == 7


def test_a_failed_run_shows_its_error(shapes, tmp_path):
    args = ["--output", tmp_path / "demo", "--iterations", 2, "MODEL.DEVICE", "nowhere"]
    printed = tool("demo.py", *args, datasets=shapes, ok=False)
    assert "failed" in printed and "nowhere" in printed


def test_benchmark_writes_its_rows(tmp_path):
    """Each at a tiny size; it compares values and gradients before it times them."""
    parts = ["loss", "memory", "step", "eval", "peer"]
    printed = tool(
        "benchmark.py", "--size", 64, 96, "--repeats", 1, "--only", *parts,
        "--output", tmp_path, datasets=tmp_path,
    )  # fmt: skip
    *rows, machine = json.loads((tmp_path / "results.json").read_text())
    if any(importlib.util.find_spec(name) is None for name in ("mmrazor", "mmcv", "mmengine")):
        assert "is not installed, so its rows are left out" in printed
    else:
        assert [r["name"] for r in rows[-2:]] == ["peer_time", "peer_memory"]
        rows = rows[:-2]
    assert machine["name"] == "machine" and machine["gemm_gflops"] > 0
    names = [
        "loss_time",
        "loss_launches",
        "loss_memory",
        "full_resolution_keys_memory",
        "step_mask_rcnn",
    ]
    assert [r["name"] for r in rows] == [*names, "step_over_same_teacher", "eval_overhead"]
    for r in rows:
        assert {"name", "measured", "reference", "ratio", "min", "max", "target"} <= set(r)
        assert r["measured"] > 0 and r["min"] <= r["max"]
    by_name = {r["name"]: r for r in rows}
    assert by_name["loss_time"]["flops"] > 0
    assert by_name["step_mask_rcnn"]["reduced_bytes_student"] > 1.7e8
    for name in by_name:
        assert name in (tmp_path / "table.md").read_text()


def test_slim_checkpoint_keeps_versions_and_large_numbers(tmp_path):
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    layers[1].running_var.fill_(1e6)
    torch.save({"model": layers.state_dict()}, tmp_path / "in.pth")
    slim(str(tmp_path / "in.pth"), str(tmp_path / "out.pth"))
    state = torch.load(tmp_path / "out.pth")["model"]
    assert state._metadata["1"] == {"version": 2}
    assert state["1.running_var"].item() == 1e6 and state["0.weight"].dtype == torch.float16


def test_slim_checkpoint_names_what_half_precision_loses(tmp_path):
    tiny = torch.full((3,), 1e-9)
    mixed = torch.tensor([1.0, 1e-9, 0.0])
    torch.save({"model": {"tiny": tiny, "mixed": mixed}}, tmp_path / "in.pth")
    said = slim(str(tmp_path / "in.pth"), str(tmp_path / "out.pth"))
    state = torch.load(tmp_path / "out.pth")["model"]
    assert state["tiny"].equal(tiny) and state["mixed"].tolist() == [1, 0, 0]
    assert "1 values of 1 tensors are too small" in said and said.endswith("mixed (1)")


@pytest.mark.parametrize(
    "content,words",
    [
        (None, "It is a folder, not a file"),
        ([torch.ones(1)], "it holds a list, not a dict"),
        ({"model": [torch.ones(1)]}, "holds no weights"),
        ({"model": {"a": 7}}, "holds no weights"),
        ({}, "holds no weights"),
        ({"distiller.a": torch.ones(1)}, "a distiller only"),
    ],
)
def test_slim_checkpoint_of_no_checkpoint(content, words, tmp_path):
    path = tmp_path / "in.pth"
    path.mkdir() if content is None else torch.save(content, path)
    with pytest.raises((ValueError, OSError, CheckpointError), match=words):
        slim(str(path), str(tmp_path / "out.pth"))


def test_slim_checkpoint_does_not_write_over_its_source(tmp_path):
    torch.save({"a": torch.ones(1), "optimizer": {}}, tmp_path / "in.pth")
    before = (tmp_path / "in.pth").read_bytes()
    (tmp_path / "same.pth").symlink_to(tmp_path / "in.pth")
    for target in ("in.pth", "same.pth"):
        with pytest.raises(ValueError, match="the target must be another file"):
            slim(str(tmp_path / "in.pth"), str(tmp_path / target))
    assert (tmp_path / "in.pth").read_bytes() == before


def test_slim_checkpoint_into_a_folder_that_is_not_there(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "in.pth")
    with pytest.raises(FileNotFoundError):
        slim(str(tmp_path / "in.pth"), str(tmp_path / "none" / "out.pth"))


def test_slim_checkpoint_says_what_is_wrong_in_a_line(tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"PK")
    for name in ("broken.pth", "none.pth"):
        printed = call_script("tools/slim_checkpoint.py", tmp_path / name, "x", ok=False)
        assert printed.startswith("error: ") and printed.count("\n") == 1 and name in printed
