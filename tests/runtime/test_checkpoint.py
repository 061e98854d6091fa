"""Checkpoints under faults, and files that are not what they say."""

import io
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from skd import build_teacher
from skd.runtime.checkpoint import (
    TRUST_VARIABLE,
    CheckpointError,
    DamagedCheckpointError,
    SafeCheckpointer,
    load_pickle,
    load_tensors,
)
from tests.helpers import environment


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class Evaluates(Runs):
    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({self.marker!r})",)


class Imports(Runs):
    """Through an attribute of something harmless: what allow-lists by module get wrong."""

    def __reduce__(self):
        return np.testing.measure, (f"__import__('os').mkdir({self.marker!r})",)


def write_pickle(path, content, protocol=2):
    with open(path, "wb") as f:
        pickle.dump(content, f, protocol=protocol)
    return str(path)


@pytest.mark.parametrize("kind", [Runs, Evaluates, Imports])
@pytest.mark.parametrize("place", ["whole", "nested", "key"])
@pytest.mark.parametrize("extension", ["pkl", "pth", "pyth"])
def test_files_that_run_code_are_refused_and_named(kind, place, extension, tmp_path):
    marker, path = tmp_path / "marker", str(tmp_path / f"weights.{extension}")
    content = {
        "whole": kind(marker),
        "nested": {"model": OrderedDict(a=[1, {"b": (2, kind(marker))}])},
        "key": {"model": {}, "__author__": kind(marker)},
    }[place]
    if extension == "pkl":
        write_pickle(path, content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match="is refused: loading it would run") as error:
        SafeCheckpointer(torch.nn.Linear(1, 1)).load(path)
    assert path in str(error.value) and TRUST_VARIABLE in str(error.value)
    assert not marker.exists()


def test_the_teacher_is_loaded_with_the_same_care(teacher_files, tmp_path):
    path = write_pickle(tmp_path / "zoo.pkl", {"model": Runs(tmp_path / "x"), "__author__": "me"})
    with pytest.raises(CheckpointError, match="zoo.pkl' is refused.*mkdir"):
        build_teacher(teacher_files[0], weights=path)


def test_who_is_trusted_by_name_is_loaded(tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    path = write_pickle(tmp_path / "mine.pkl", {"model": {}, "__author__": Runs(marker)})
    monkeypatch.setenv(TRUST_VARIABLE, os.pathsep.join(["/other.pkl", path]))
    SafeCheckpointer(torch.nn.Linear(1, 1)).load(path)
    assert marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_pickles_of_arrays_load(protocol, tmp_path):
    content = {
        "model": OrderedDict(
            a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.float64(3.5),
            c=np.asfortranarray(np.ones((2, 2), np.int64)), d=np.zeros((0, 4), np.float16),
        ),
        "__author__": "me", "iteration": 3, "list": [1, "two", None, (4.0,)],
    }  # fmt: skip
    loaded = load_pickle(write_pickle(tmp_path / "a.pkl", content, protocol))
    assert loaded.keys() == content.keys() and loaded["list"] == content["list"]
    for name, value in content["model"].items():
        np.testing.assert_array_equal(loaded["model"][name], value)
        assert loaded["model"][name].dtype == value.dtype


def test_caffe2_pickles_are_read_as_detectron2_reads_them(tmp_path):
    blobs = {"weight": np.ones((1, 1), np.float32), "weight_momentum": np.ones(1, np.float32)}
    path = write_pickle(tmp_path / "c2.pkl", {"blobs": blobs})
    data = SafeCheckpointer(torch.nn.Linear(1, 1))._load_file(path)
    assert list(data["model"]) == ["weight"] and data["matching_heuristics"]


def claims():
    """Files that claim to hold more than they do."""
    yield "bytes.pkl", b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc."
    yield "text.pkl", b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"abc."
    array = pickle.dumps({"model": np.zeros(3, np.float32)}, protocol=2)
    yield "shape.pkl", array.replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85")
    yield "objects.pkl", pickle.dumps({"model": np.array([None, {}], dtype=object)})
    yield "frames.pkl", b"\x80\x04\x95" + (2**50).to_bytes(8, "little") + b"}."
    yield "empty.pth", b""
    yield "text.pth", b"not a checkpoint at all"
    buffer = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(1000)}}, buffer)
    yield "half.pth", buffer.getvalue()[: len(buffer.getvalue()) // 2]
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as f:
        f.writestr("archive/data.pkl", b"\x80\x02]" + b"a" * 10)
    yield "zip.pth", bomb.getvalue()
    yield "list.pkl", pickle.dumps([1, 2])


@pytest.mark.parametrize("name,content", claims(), ids=lambda v: v if isinstance(v, str) else "")
def test_damaged_files_are_named(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=name):
        (load_pickle if name.endswith("pkl") else load_tensors)(str(path))


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


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "gone"])
def test_resume_goes_back_to_the_newest_that_can_be_read(damage, tmp_path, caplog):
    save(tmp_path, 1, 2, 3)
    newest = tmp_path / "model_0000003.pth"
    if damage == "gone":
        newest.unlink()
    else:
        whole = newest.read_bytes()
        newest.write_bytes(
            {"truncated": whole[:-200], "empty": b"", "garbage": b"x" * len(whole)}[damage]
        )
    reader = checkpointer(tmp_path)
    with caplog.at_level(logging.ERROR, "skd.runtime.checkpoint"):
        loaded = reader.resume_or_load("", resume=True)
    assert loaded["iteration"] == 2 and (reader.model.weight == 2).all()
    assert damage == "gone" or "model_0000003.pth' is damaged" in caplog.text


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
