"""Checkpoints under faults."""

import logging
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from skd.runtime.checkpoint import CheckpointError, SafeCheckpointer
from skd.runtime.record import append_record
from tests.processes import environment


def checkpointer(folder):
    return SafeCheckpointer(torch.nn.Linear(2, 2), str(folder))


def save(folder, *iterations):
    """Checkpoints whose weights are all their iteration."""
    saver = checkpointer(folder)
    for iteration in iterations:
        torch.nn.init.constant_(saver.model.weight, float(iteration))
        saver.save(f"model_{iteration:07d}", iteration=iteration)
        past = time.time() - 1000 + iteration
        os.utime(folder / f"model_{iteration:07d}.pth", (past, past))


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "one bit", "gone"])
def test_resume_goes_back_to_the_newest_that_can_be_read(damage, tmp_path, caplog):
    save(tmp_path, 1, 2, 3)
    newest = tmp_path / "model_0000003.pth"
    if damage == "gone":
        newest.unlink()
    else:
        whole = newest.read_bytes()
        three = torch.full((2, 2), 3.0).numpy().tobytes()
        newest.write_bytes(
            {
                "truncated": whole[:-200],
                "empty": b"",
                "garbage": b"x" * len(whole),
                "one bit": whole.replace(three, three[:-1] + b"A"),
            }[damage]
        )
    reader = checkpointer(tmp_path)
    with caplog.at_level(logging.ERROR, "skd.runtime.checkpoint"):
        loaded = reader.resume_or_load("", resume=True)
    assert loaded["iteration"] == 2 and (reader.model.weight == 2).all()
    assert damage == "gone" or "model_0000003.pth' is damaged" in caplog.text


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\0" * 20, b""])
def test_last_checkpoint_may_be_damaged(content, tmp_path):
    saver = checkpointer(tmp_path)
    saver.run_id = "a"
    saver.save("model_0000001", iteration=1)
    append_record(str(tmp_path), {"run": "a"})
    (tmp_path / "last_checkpoint").write_bytes(content)
    assert checkpointer(tmp_path).resume_or_load("", resume=True)["iteration"] == 1


def test_nothing_left_to_resume_from_is_an_error(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="None of the checkpoints.*model_0000001.pth"):
        checkpointer(tmp_path).resume_or_load("", resume=True)


WRITER = """
import sys, torch
from skd.runtime.checkpoint import SafeCheckpointer
model = torch.nn.Linear(1000, 1000)
saver = SafeCheckpointer(model, sys.argv[1])
for iteration in range(1, 10000):
    torch.nn.init.constant_(model.weight, float(iteration))
    saver.save(f"model_{iteration % 3:07d}", iteration=iteration)
    print(iteration, flush=True)
"""


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    rng = random.Random(0)
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WRITER, str(folder)],
            env=environment(tmp_path), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        done = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        done = max([done, *map(int, process.stdout.read().split())])
        process.wait()
        reader = SafeCheckpointer(torch.nn.Linear(1000, 1000), str(folder))
        loaded = reader.resume_or_load("", resume=True)
        # the one it was writing may have been complete before it could say so
        assert loaded["iteration"] in (done, done + 1)
        assert (reader.model.weight == loaded["iteration"]).all()


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """The limit on the size of a file stands for the disk: the write fails half way."""
    code = """
import resource, sys, torch
from skd.runtime.checkpoint import SafeCheckpointer
model = torch.nn.Linear(1000, 1000)
saver = SafeCheckpointer(model, sys.argv[1])
saver.save("model_0000001", iteration=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
saver.save("model_0000002", iteration=2)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        env=environment(tmp_path), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "model_0000002.pth' could not be written" in done.stderr
    assert "unchanged: " in done.stderr and "model_0000001.pth" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]
    reader = SafeCheckpointer(torch.nn.Linear(1000, 1000), str(tmp_path))
    assert reader.resume_or_load("", resume=True)["iteration"] == 1
