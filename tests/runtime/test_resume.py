"""Which checkpoint a run goes on from, when reading fails, far away, and in several processes."""

import errno
import logging
import os

import pytest
import torch
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from skd.runtime import whole_files
from skd.runtime.checkpoint import CheckpointError, SafeCheckpointer
from tests.processes import leave_together


def checkpointer(folder):
    return SafeCheckpointer(torch.nn.Linear(1, 1), str(folder))


def save(folder, *iterations):
    saver = checkpointer(folder)
    for iteration in iterations:
        torch.nn.init.constant_(saver.model.weight, float(iteration))
        saver.save(f"model_{iteration:07d}", iteration=iteration)


@pytest.mark.parametrize(
    "fault",
    [OSError(errno.EIO, "I/O error"), PermissionError(errno.EACCES, "denied"), MemoryError()],
)
def test_only_a_damaged_file_makes_it_go_back(fault, tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    load = torch.load

    def failing(path, *args, **kwargs):
        if "0000002" in str(path):
            raise fault
        return load(path, *args, **kwargs)

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(type(fault)):
        checkpointer(tmp_path).resume_or_load("", resume=True)
    monkeypatch.undo()
    assert checkpointer(tmp_path).resume_or_load("", resume=True)["iteration"] == 2


def test_the_advice_costs_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        checkpointer(tmp_path).resume_or_load("", resume=True)
    assert "in another output_dir" in str(error.value)
    assert not any(word in str(error.value).lower() for word in ("remove", "delete"))


class Far(PathHandler):
    """A folder that only the PathManager knows."""

    def __init__(self, root):
        super().__init__()
        self.root = str(root)

    def _get_supported_prefixes(self):
        return ["far://"]

    def _here(self, path):
        return os.path.join(self.root, path[len("far://") :])

    def _get_local_path(self, path, force=False, **kwargs):
        return self._here(path)

    def _open(self, path, mode="r", buffering=-1, **kwargs):
        return open(self._here(path), mode)

    def _exists(self, path, **kwargs):
        return os.path.exists(self._here(path))

    def _isfile(self, path, **kwargs):
        return os.path.isfile(self._here(path))

    def _ls(self, path, **kwargs):
        return os.listdir(self._here(path))


def test_remote_folders_resume(tmp_path):
    (tmp_path / "run").mkdir()
    PathManager.register_handler(Far(tmp_path), allow_override=True)
    save("far://run", 1, 2, 10)
    assert checkpointer("far://run").resume_or_load("", resume=True)["iteration"] == 10
    (tmp_path / "run" / "model_0000010.pth").write_bytes(b"")
    reader = checkpointer("far://run")
    assert reader.resume_or_load("", resume=True)["iteration"] == 2 and reader.model.weight == 2


def rank(folder, out):
    """
    Process 1 cannot read the newest file but for one that has other bytes than were written, and
    sees no last_checkpoint either.
    """
    logging.disable(logging.CRITICAL)
    reader = checkpointer(folder)
    if comm.get_rank() == 1:
        load = torch.load
        torch.load = lambda path, *a, **k: 1 / 0 if "0000002" in str(path) else load(path, *a, **k)
        reader.has_checkpoint = lambda: False
    data = reader.resume_or_load("", resume=True)
    torch.save((data["iteration"], reader.model.weight.item()), f"{out}/{comm.get_rank()}")
    leave_together()


def test_process_0_chooses_and_all_follow(tmp_path):
    save(tmp_path, 1, 2, 3)
    newest = tmp_path / "model_0000003.pth"
    three = torch.tensor(3.0).numpy().tobytes()
    newest.write_bytes(newest.read_bytes().replace(three, three[:-1] + b"A"))
    launch(rank, 2, dist_url="auto", args=(str(tmp_path), str(tmp_path)))
    assert [torch.load(tmp_path / str(i)) for i in range(2)] == [(2, 2.0), (2, 2.0)]


def test_a_folder_that_knows_no_fsync_is_no_error(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(whole_files.os, "fsync", refuse)
    save(tmp_path, 1)
    assert checkpointer(tmp_path).resume_or_load("", resume=True)["iteration"] == 1


def test_a_device_that_fails_in_fsync_is(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(whole_files.os, "fsync", fail)
    with pytest.raises(OSError, match="could not be written"):
        save(tmp_path, 1)
    assert os.listdir(tmp_path) == []


def test_weights_alone_are_nothing_to_resume_from(tmp_path):
    save(tmp_path, 1)
    reader = SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path), trainer=torch.nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="has weights only, and no state of trainer"):
        reader.resume_or_load("", resume=True)


@pytest.mark.parametrize("state", [{}, [1], 3])
def test_a_state_that_is_none_is_told(state, tmp_path):
    class Part:
        def state_dict(self):
            return {"iteration": self.iteration}

        def load_state_dict(self, state):
            self.iteration = state["iteration"] + 0

    reader = SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path), trainer=Part())
    data = {"model": dict(reader.model.state_dict()), "trainer": state}
    with pytest.raises(CheckpointError, match="'x.pth' has a state of trainer that is none"):
        reader.resume_from("x.pth", data)
