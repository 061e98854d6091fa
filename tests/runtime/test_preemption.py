"""SIGTERM and SIGINT to a real training, and what comes after."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from skd.runtime.preemption import EXIT_REQUEUE
from tests.helpers import ROOT, distilling, environment, run_script, tiny_config


def start(config, datasets, output, *flags):
    """Start training; a pipe nobody reads would stop it."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", os.path.join(ROOT, "train_net.py"),
         "--config-file", str(config), *flags],
        env=environment(datasets),
        stdout=output, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.parametrize("number,processes", [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_a_signal_leaves_a_checkpoint_to_go_on_from(
    number, processes, teacher_files, shapes, tmp_path
):
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=100000), teacher_files)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("skd_shapes_train",), ()
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    config = tmp_path / "config.yaml"
    config.write_text(cfg.dump())
    flags = ["--num-gpus", str(processes), "--dist-url", "auto"]
    metrics, log = tmp_path / "out" / "metrics.json", tmp_path / "stdout.txt"
    with open(log, "w") as output:
        process = start(config, shapes, output, *flags)
    try:
        deadline = time.monotonic() + 300
        while not metrics.exists() or not metrics.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        process.send_signal(number)
        process.wait(timeout=120)
    finally:
        process.kill()
    printed = log.read_text()
    assert process.returncode == EXIT_REQUEUE, printed[-3000:]
    assert f"Received {number.name}: stopping at the end" in printed
    name = (tmp_path / "out" / "last_checkpoint").read_text()
    state = torch.load(tmp_path / "out" / name)
    iteration = state["iteration"]
    assert name == f"model_{iteration:07d}.pth" and "trainer" in state
    printed = run_script(
        "train_net.py", "--config-file", config, "--resume", *flags,
        "SOLVER.MAX_ITER", iteration + 3, datasets=shapes,
    )  # fmt: skip
    assert f"Starting training from iteration {iteration + 1}" in printed
