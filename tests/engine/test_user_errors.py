"""How a training ends for an error of the user's: its message and 2, no traceback."""

import os
import subprocess
import sys
import threading

import pytest
from torch.utils.data import DataLoader

from skd.config import read_config
from skd.config.pipe import as_file
from skd.runtime.loader import DataError, MappedDataset
from skd.runtime.user_errors import TRACEBACK_VARIABLE, UserError, exits_on, message_of
from tests.helpers import ROOT, tiny_config
from tests.processes import environment


@pytest.mark.slow
def test_a_command_of_several_processes_ends_with_the_message_and_2(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(tiny_config(OUTPUT_DIR=str(tmp_path / "out")).dump())
    done = subprocess.run(
        [
            sys.executable, "-W", "ignore", os.path.join(ROOT, "train_net.py"), "--num-gpus", "2",
            "--dist-url", "auto", "--config-file", path, "SOLVER.MAX_ITER", "0",
        ],
        env=environment(tmp_path), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "error: SOLVER.MAX_ITER is 0; it must be a whole number above 0.\n" in done.stderr


def test_only_the_named_kinds_are_told(capsys, monkeypatch):
    with pytest.raises(SystemExit) as end, exits_on(UserError):
        raise UserError("KEY is 1;\n  it must be 2.")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: KEY is 1;\n  it must be 2.\n(SKD_TRACEBACK=1")
    with pytest.raises(ValueError), exits_on(UserError):
        raise ValueError("a bug of somebody's")
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(UserError), exits_on(UserError):
        raise UserError("seen")


def test_an_error_without_a_sentence_says_where_it_is_from():
    words = "R-17"
    with pytest.raises(KeyError) as error:
        {}[words]
    assert message_of(error.value).startswith("KeyError: R-17 (")
    try:
        assert not words
    except AssertionError as error:
        error.args = ()
        said = message_of(error)
    assert said.startswith("AssertionError (") and said.endswith(": assert not words)")


def broken(record):
    raise OSError("truncated")


def test_an_error_of_a_loaders_worker_is_told_without_torchs_words():
    dataset = MappedDataset([{"file_name": "a.jpg", "image_id": 3}], broken, 0)
    loader = DataLoader(dataset, num_workers=1, sampler=[(0, 0)])
    with pytest.raises(DataError, match="Original Traceback") as error:
        next(iter(loader))
    assert message_of(error.value).startswith("Image 'a.jpg' (id 3) cannot be used: OSError: trunc")


def test_a_config_through_a_pipe_is_read_once(tmp_path):
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    for content in ("SEED: 5\n", ""):
        writer = threading.Thread(target=lambda: open(fifo, "w").write(content))
        writer.start()
        if content:
            with as_file(fifo) as path:
                assert all(read_config(path).SEED == 5 for _ in range(2))
        else:
            with pytest.raises(UserError, match="fifo' is a pipe that gives nothing"):
                with as_file(fifo):
                    pass
        writer.join()
    assert not os.path.exists(path)
    ends = os.pipe()
    os.write(ends[1], b"SEED: 6\n")
    os.close(ends[1])
    with as_file(f"/dev/fd/{ends[0]}") as path:  # what <(...) gives
        assert read_config(path).SEED == 6
    os.close(ends[0])
    for plain in ("", "gone.yaml", "https://host/a.yaml", os.path.join(ROOT, "README.md")):
        with as_file(plain) as path:
            assert path == plain
