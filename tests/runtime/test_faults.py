"""Faults, caused for real: a process dies, a loss is not finite, memory runs out, a run is long."""

import gc
import json
import os
import subprocess
import sys

import pytest
import torch
from detectron2.engine import HookBase

from skd.engine import SKDTrainer
from skd.runtime.record import file_sha256
from tests.helpers import ROOT, distilling, tiny_config
from tests.processes import call_script, patched, patched_forward, process_config, run_script

pytestmark = pytest.mark.slow


DIE = """
if calls == 4 and comm.get_rank() == 1:
    os.kill(os.getpid(), 9)
return forward(self, inputs)
"""


def test_a_dead_rank_is_named_and_nothing_hangs(teacher_files, shapes, tmp_path):
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=99, SOLVER__CHECKPOINT_PERIOD=2), teacher_files)
    config = process_config(cfg, tmp_path)
    printed = run_script(
        patched_forward(tmp_path, DIE), "--config-file", config,
        "--num-gpus", 2, "--dist-url", "auto", datasets=shapes, ok=False, timeout=150,
    )  # fmt: skip
    assert "RuntimeError: Rank 1 of 2 died (SIGKILL)" in printed
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000001.pth"


NAN = """
if calls in (2, 4) and comm.get_rank() == comm.get_world_size() - 1:
    adapter = self.distiller.levels["p4"].feature_adapter.bias.data
    before = adapter.clone()
    adapter.fill_(float("nan"))
    try:
        return forward(self, inputs)
    finally:
        adapter.copy_(before)
return forward(self, inputs)
"""


@pytest.mark.parametrize("processes,accumulate", [(1, 2), (2, 1)])
def test_batches_that_are_not_finite_are_left_out(
    processes, accumulate, teacher_files, shapes, tmp_path
):
    cfg = distilling(
        tiny_config(SOLVER__MAX_ITER=6, SOLVER__IMS_PER_BATCH=4, SOLVER__ACCUMULATE=accumulate),
        teacher_files,
    )
    cfg.SOLVER.SKIP_NON_FINITE = 2
    flags = ["--num-gpus", processes, "--dist-url", "auto"]
    printed = run_script(
        patched_forward(tmp_path, NAN), "--config-file", process_config(cfg, tmp_path), *flags,
        datasets=shapes,
    )  # fmt: skip
    assert "Batch skipped, 2 of at most 2" in printed
    state = torch.load(tmp_path / "out" / "model_final.pth")
    assert state["iteration"] == 5
    assert all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())


def test_more_of_them_than_allowed_stop_the_run(teacher_files, shapes, tmp_path):
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=6, SOLVER__CHECKPOINT_PERIOD=1), teacher_files)
    cfg.SOLVER.SKIP_NON_FINITE = 1
    printed = run_script(
        patched_forward(tmp_path, NAN), "--config-file", process_config(cfg, tmp_path),
        datasets=shapes, ok=False,
    )  # fmt: skip
    assert "Loss is not finite at iteration 3, images" in printed
    assert "distill/structured_am_p4 is nan" in printed
    assert "1 such batches were skipped before, as many as SOLVER.SKIP_NON_FINITE" in printed
    name = (tmp_path / "out" / "last_checkpoint").read_text()
    state = torch.load(tmp_path / "out" / name)["model"]
    assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())


def test_a_student_alone_leaves_them_out_too(shapes, tmp_path):
    cfg = tiny_config(SOLVER__MAX_ITER=4, SOLVER__SKIP_NON_FINITE=1, DATASETS__TEST=())
    cfg.OUTPUT_DIR = str(tmp_path)
    trainer = SKDTrainer(cfg)
    forward, calls = trainer.model.forward, []

    def failing(inputs):
        calls.append(1)
        losses = forward(inputs)
        return {**losses, "loss_cls": losses["loss_cls"] * (float("nan") if len(calls) == 2 else 1)}

    trainer.model.forward = failing
    trainer.train()
    assert len(calls) == 4
    assert all(p.isfinite().all() for p in trainer.model.parameters())


MEMORY = """
import resource
from skd.engine import SKDTrainer

train = SKDTrainer.train

def limited(self):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20),) * 2)
    return train(self)

SKDTrainer.train = limited
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_out_of_memory_says_how_large_the_batch_was_and_what_to_change(
    teacher_files, shapes, tmp_path
):
    cfg = distilling(
        tiny_config(
            INPUT__MIN_SIZE_TRAIN=(1600,), INPUT__MAX_SIZE_TRAIN=1600, SOLVER__IMS_PER_BATCH=4
        ),
        teacher_files,
    )
    printed = run_script(
        patched(tmp_path, MEMORY), "--config-file", process_config(cfg, tmp_path),
        datasets=shapes, ok=False,
    )  # fmt: skip
    sizes = ", ".join(["1600x1600"] * 4)
    assert f"Memory ran out on a batch of 4 images of {sizes} pixels, with 1 gradient" in printed
    assert "SOLVER.ACCUMULATE" in printed and "INPUT.MAX_SIZE_TRAIN" in printed


class Watch(HookBase):
    """Resident memory in MiB, and how many tensors there are, every 75 iterations."""

    def __init__(self):
        self.memory, self.tensors = [], []

    def after_step(self):
        if (self.trainer.iter + 1) % 75:
            return
        gc.collect()
        with open("/proc/self/statm") as f:
            pages = int(f.read().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        # by type: isinstance() asks weak proxies, whose objects may be gone
        self.tensors.append(sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_long_run_takes_no_more_memory_than_a_short_one(teacher_files, shapes, tmp_path):
    cfg = distilling(
        tiny_config(
            "retinanet", SOLVER__MAX_ITER=600, SOLVER__BASE_LR=1e-5,
            INPUT__MIN_SIZE_TRAIN=(32,), INPUT__MAX_SIZE_TRAIN=32, DATASETS__TEST=(),
        ),
        teacher_files,
    )  # fmt: skip
    cfg.OUTPUT_DIR = str(tmp_path)
    trainer, watch = SKDTrainer(cfg), Watch()
    trainer.register_hooks([watch])
    trainer.train()
    assert len(watch.memory) == 8
    # the first half fills caches, and the system may take pages back; a map held in each step would
    # be some 100 KiB, 25 MiB in the second half
    assert watch.memory[-1] - watch.memory[3] < 8, watch.memory
    assert max(watch.tensors[1:]) - min(watch.tensors[1:]) < 20, watch.tensors


def test_every_run_leaves_a_record(teacher_files, shapes, tmp_path):
    cfg = distilling(tiny_config(SEED=7, SOLVER__MAX_ITER=1, DATASETS__TEST=()), teacher_files)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    weights = ["MODEL.WEIGHTS", tmp_path / "out" / "model_final.pth"]
    evaluation = ["--eval-only", "DATASETS.TEST", "('tiny_val',)", *weights]
    for flags in ([], ["--resume", "SOLVER.MAX_ITER", 2], evaluation):
        call_script("train_net.py", "--config-file", tmp_path / "config.yaml", *flags)
    with open(tmp_path / "out" / "runs.jsonl") as f:
        first, second, third = map(json.loads, f)
    assert list(third["datasets"]) == ["tiny_val"]
    assert "--resume" in second["command"] and "--resume" not in first["command"]
    assert first["seed"] == 7 and first["versions"]["torch"] == torch.__version__.split("+")[0]
    sha256 = file_sha256(teacher_files[1])
    assert first["files"] == {"teacher": {"path": teacher_files[1], "sha256": sha256}}
    data = first["datasets"]["tiny_train"]
    assert len(data["annotations"]) == len(data["images"]) == 64 and second["datasets"] == {
        "tiny_train": data
    }
    head = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert first["git"].get("commit", "") == head
    assert os.path.exists(tmp_path / "out" / "config.yaml")
