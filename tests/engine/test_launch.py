"""torchrun: processes from the environment, and an elastic restart."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from torch.multiprocessing import ProcessExitedException

from skd.engine import launch
from skd.runtime.preemption import EXIT_REQUEUE, SIGNALS
from tests.helpers import distilling, tiny_config
from tests.processes import environment, patched, process_config

launch_module = sys.modules["skd.engine.launch"]  # the package's name is the function's

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
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--max-restarts", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
            patched(tmp_path, CRASH), "--config-file", process_config(cfg, tmp_path),
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


def test_torchruns_group_gets_detectron2s_time_limit(monkeypatch):
    """torch's own for GPUs is shorter than an evaluation of process 0 may take."""
    from train_net import argument_parser

    given = {}

    class Enough(Exception):
        pass

    def init(backend, **kwargs):
        given.update(kwargs)
        raise Enough

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    for name, value in {**names, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.distributed, "init_process_group", init)
    with pytest.raises(Enough):
        launch(lambda args: None, argument_parser().parse_args([]))
    assert given["timeout"] == DEFAULT_TIMEOUT


FAIL = """
from skd.engine import SKDTrainer

def failing(self):
    if os.environ["RANK"] == "1":
        raise RuntimeError("rank 1 fails")
    import torch.distributed as dist
    dist.barrier()

SKDTrainer.train = failing
"""


def test_a_rank_that_fails_ends_the_others(teacher_files, shapes, tmp_path):
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=5), teacher_files)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
            patched(tmp_path, FAIL), "--config-file", process_config(cfg, tmp_path),
        ],
        env=environment(shapes),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode != 0 and "rank 1 fails" in done.stdout


def exits(send, number, error, monkeypatch):
    """The exit code of a launch of two processes that gets a signal, and one of which ends so."""
    from train_net import argument_parser

    def start(main, *args, **kwargs):
        os.kill(os.getpid(), number)
        raise error

    monkeypatch.setattr(launch_module, "detectron2_launch", start)
    monkeypatch.setattr(launch_module, "active_children", lambda: send)
    before = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored
    try:
        with pytest.raises(SystemExit) as end:
            launch(print, argument_parser().parse_args(["--num-gpus", "2"]))
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    return end.value.code


class Child:
    pid = 2**30  # nobody's: it is gone already


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_training_ends_it_with_its_number(number, monkeypatch):
    """The signal ends it while no child exists, and while the child has not taken it over."""
    assert exits([], number, AssertionError("it went on"), monkeypatch) == 128 + number
    died = ProcessExitedException("", 0, 1, -number, signal.Signals(number).name)
    assert exits([Child], number, died, monkeypatch) == 128 + number
    stopped = ProcessExitedException("", 0, 1, EXIT_REQUEUE, None)
    assert exits([Child], number, stopped, monkeypatch) == EXIT_REQUEUE


def test_a_child_ends_by_ctrl_c():
    before = signal.getsignal(signal.SIGINT)
    try:
        handlers = launch_module._in_child(lambda args: signal.getsignal(signal.SIGINT), None)
        assert handlers == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
