"""torchrun: processes from the environment, and an elastic restart."""

import json
import subprocess
import sys

import pytest
import torch

from skd.engine import launch
from tests.helpers import distilling, environment, patched, tiny_config

CRASH = """
from skd.engine import SKDTrainer

run_step = SKDTrainer.run_step

def crashing(self):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and self.iter == 3 and os.environ["RANK"] == "1":
        raise RuntimeError("a node is lost")
    run_step(self)

SKDTrainer.run_step = crashing
"""


def test_elastic_restart_resumes_from_the_last_checkpoint(teacher_files, shapes, tmp_path):
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=5, SOLVER__CHECKPOINT_PERIOD=2), teacher_files)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("skd_shapes_train",), ()
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--max-restarts", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
            patched(tmp_path, CRASH), "--config-file", tmp_path / "config.yaml",
        ],
        env=environment(shapes),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "a node is lost" in done.stdout
    assert "Starting training from iteration 0" in done.stdout
    assert "Starting training from iteration 2" in done.stdout
    assert torch.load(tmp_path / "out" / "model_final.pth")["iteration"] == 4
    rows = [json.loads(line) for line in open(tmp_path / "out" / "metrics.json")]
    assert rows[-1]["iteration"] == 4 and "distill/structured_am_p2" in rows[-1]


def test_torchrun_and_num_gpus_together_are_refused(monkeypatch):
    from train_net import argument_parser

    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(ValueError, match="leave out --num-gpus"):
        launch(lambda args: None, argument_parser().parse_args(["--num-gpus", "2"]))
