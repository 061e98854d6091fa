"""Signals to a real training, to one process and to the whole group, and what comes after."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from skd.engine import SKDTrainer
from skd.engine.launch import _passing_on
from skd.runtime import preemption
from skd.runtime.preemption import EXIT_REQUEUE
from tests.helpers import ROOT, distilling, tiny_config
from tests.processes import environment, patched, process_config, run_script

# Every image of an evaluation takes minutes: who waits for one is found out.
SLOW_EVALUATION = """
import time

from detectron2.modeling import GeneralizedRCNN

def inference(self, inputs):
    open(os.environ["EVALUATING"] + str(os.getpid()), "w").close()
    time.sleep(300)

GeneralizedRCNN.inference = inference
"""

pytestmark = pytest.mark.slow


def begin(script, config, datasets, log, *flags, **variables):
    """Start training as the leader of a process group; a pipe nobody reads would stop it."""
    with open(log, "w") as output:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", script, "--config-file", str(config), *flags],
            env={**environment(datasets), **variables}, start_new_session=True,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def wait_until(condition, process, log):
    """The time is for a machine that is busy; a process that hangs is not left behind."""
    deadline = time.monotonic() + 900
    while not condition():
        if process.poll() is None and time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.2)


def stop(process, send, log):
    """Send a signal to a process, or by killpg to its group; the exit code within 2 minutes."""
    try:
        send(process.pid)
        return process.wait(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            print(log.read_text()[-3000:])


def last_state(folder):
    name = (folder / "last_checkpoint").read_text()
    state = torch.load(folder / name)
    assert name == f"model_{state['iteration']:07d}.pth" and "trainer" in state
    return state


@pytest.mark.parametrize(
    "number,to,processes,workers",
    [
        (signal.SIGTERM, os.killpg, 1, 2),
        (signal.SIGTERM, os.killpg, 2, 2),
        (signal.SIGINT, os.kill, 1, 0),
    ],
)
def test_a_signal_leaves_a_checkpoint_to_go_on_from(
    number, to, processes, workers, teacher_files, shapes, tmp_path
):
    cfg = distilling(
        tiny_config(SOLVER__MAX_ITER=100000, DATALOADER__NUM_WORKERS=workers), teacher_files
    )
    config = process_config(cfg, tmp_path)
    flags = ["--num-gpus", str(processes), "--dist-url", "auto"]
    metrics, log = tmp_path / "out" / "metrics.json", tmp_path / "stdout.txt"
    process = begin(os.path.join(ROOT, "train_net.py"), config, shapes, log, *flags)
    wait_until(lambda: metrics.exists() and metrics.read_text(), process, log)
    assert stop(process, lambda pid: to(pid, number), log) == EXIT_REQUEUE, log.read_text()[-3000:]
    assert f"Received {number.name}: stopping at the end" in log.read_text()
    iteration = last_state(tmp_path / "out")["iteration"]
    if processes == 2:
        return
    printed = run_script(
        "train_net.py", "--config-file", config, "--resume", *flags,
        "SOLVER.MAX_ITER", iteration + 3, datasets=shapes,
    )  # fmt: skip
    assert f"Starting training from iteration {iteration + 1}" in printed


@pytest.mark.parametrize("processes,decay", [(1, 0.0), (2, 0.0), (1, 0.9)])
def test_an_evaluation_is_not_waited_for(processes, decay, teacher_files, shapes, tmp_path):
    """Nor, with an average of the weights, that of the average, which comes first."""
    cfg = distilling(
        tiny_config(
            SOLVER__MAX_ITER=100, TEST__EVAL_PERIOD=2, DATALOADER__NUM_WORKERS=2,
            SOLVER__CHECKPOINT_PERIOD=100, SOLVER__EMA_DECAY=decay,
        ),
        teacher_files,
    )  # fmt: skip
    config = process_config(cfg, tmp_path, test=("skd_shapes_val",))
    log = tmp_path / "stdout.txt"

    def stop_in_evaluation(*flags):
        process = begin(
            patched(tmp_path, SLOW_EVALUATION), config, shapes, log, *flags,
            "--num-gpus", str(processes), "--dist-url", "auto",
            EVALUATING=str(tmp_path / "evaluating"),
        )  # fmt: skip
        wait_until(lambda: len(list(tmp_path.glob("evaluating*"))) == processes, process, log)
        code = stop(process, lambda pid: os.killpg(pid, signal.SIGTERM), log)
        assert code == EXIT_REQUEUE, log.read_text()[-3000:]
        assert "Stopped during an evaluation" in log.read_text()
        assert last_state(tmp_path / "out")["iteration"] == 1
        return os.stat(tmp_path / "out" / "model_0000001.pth").st_mtime_ns

    written = stop_in_evaluation()
    if decay:
        return
    for path in tmp_path.glob("evaluating*"):
        path.unlink()
    # a resume makes that evaluation first, and nothing is there that has not been saved
    assert stop_in_evaluation("--resume") == written
    assert "The evaluation after iteration 1 is not in the checkpoint" in log.read_text()


def test_outside_the_main_thread_training_takes_no_signals(shapes, tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    cfg = tiny_config(SOLVER__MAX_ITER=2, DATASETS__TEST=())
    cfg.OUTPUT_DIR = str(tmp_path)
    trained = []

    def train():
        SKDTrainer(cfg).train()
        trained.append([signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)])

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert trained == [before] and (tmp_path / "model_final.pth").exists()


def test_handlers_are_put_back(shapes, tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    cfg = tiny_config(SOLVER__MAX_ITER=1, DATASETS__TEST=())
    cfg.OUTPUT_DIR = str(tmp_path)
    SKDTrainer(cfg).train()
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_handlers_are_put_back_where_another_hook_fails_at_the_end(shapes, tmp_path, caplog):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    cfg = tiny_config(SOLVER__MAX_ITER=1, TEST__EVAL_PERIOD=0)
    cfg.OUTPUT_DIR = str(tmp_path)
    trainer = SKDTrainer(cfg)

    def fail(model):
        raise RuntimeError("no evaluation today")

    trainer.run.evaluate = fail
    with pytest.raises(RuntimeError, match="no evaluation today"):
        trainer.train()
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "Exception after the training:" in caplog.text


def test_a_warning_ahead_of_sigterm_is_no_first_of_two(monkeypatch):
    """Slurm's --signal=USR1@60 comes long before its SIGTERM, which must not stop at once."""
    left = []
    monkeypatch.setattr(preemption, "_exit", left.append)
    monkeypatch.setattr(preemption, "SAME_SIGNAL_SECONDS", -1.0)
    hook = preemption.PreemptionHook(None)
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
        hook._receive(number)
        assert hook._agreed() and not left
    hook._receive(signal.SIGTERM)
    assert left == [128 + signal.SIGTERM]


def test_several_processes_agree_on_the_host_every_few_iterations(monkeypatch):
    """All processes agree in the same iterations, also where only another one has the signal."""

    class Trainer:
        iter = 0

    exchanged = []

    def all_reduce(flag, operation, group):
        assert flag.device.type == "cpu" and group == "gloo"
        exchanged.append(hook.trainer.iter)
        flag.fill_(1)  # of the other process

    monkeypatch.setattr(preemption.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(preemption.comm, "_get_global_gloo_group", lambda: "gloo")
    monkeypatch.setattr(preemption.dist, "all_reduce", all_reduce)
    hook = preemption.PreemptionHook(None)
    hook.trainer = Trainer()
    stops = []
    for hook.trainer.iter in range(3, 12):  # resumed
        stops += [hook.trainer.iter] if hook._agreed() else []
    assert stops == exchanged == [4, 9]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_what_somebody_else_has_taken_or_ignores_is_left_alone(number):
    """A signal that somebody else handles or ignores, as nohup does SIGHUP, is left alone."""

    class Model(torch.nn.Module):
        model = property(lambda self: self)

    def mine(number, frame):
        pass

    for handler, taken in ((mine, False), (signal.SIG_IGN, False), (signal.SIG_DFL, True)):
        before = signal.signal(number, handler)
        hook = preemption.PreemptionHook(None)
        hook.trainer = Model()
        try:
            hook.before_train()
            assert (signal.getsignal(number) != handler) == taken
            hook.after_train()
            assert signal.getsignal(number) == handler
            with _passing_on([]):
                assert (signal.getsignal(number) != handler) == taken
            assert signal.getsignal(number) == handler
        finally:
            signal.signal(number, before)
