"""Files of weights that hold something else, or numbers that are none."""

import io
import logging
import math
import pickle

import numpy as np
import pytest
import torch

from skd.runtime.checkpoint import CheckpointError, SafeCheckpointer
from skd.runtime.optimizer_state import check_optimizer
from skd.runtime.weights_file import NON_FINITE_VARIABLE
from skd.study.slim_checkpoint import slim


def model():
    made = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    made.register_buffer("mask", torch.zeros(2))
    return made


def saved(tmp_path, data):
    path = tmp_path / "w.pth"
    torch.save(data, path)
    return str(path)


@pytest.mark.parametrize(
    "data,expected",
    [
        ({"model": None}, "has None under 'model'; there must be tensors by name"),
        ({"model": [1]}, "has a list under 'model'"),
        ({"model": torch.ones(2)}, "has a Tensor under 'model'"),
        ({"model": {0: torch.ones(2)}}, "has the name 0 .of type int. under 'model'"),
        ({"model": {"a": {"b": torch.ones(2)}}}, "has 'a' .of type dict. under 'model'"),
        ({"model": {"a": 3.5}}, "has 'a' .of type float. under 'model'"),
        ({"epoch": 3, "net": {}}, "has 'epoch' .of type int. in it, and no 'model'"),
        ({"state_dict": None}, "has 'state_dict' .of type NoneType. in it, and no 'model'"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_what_is_no_weights_is_one_line_that_names_the_file(data, expected, resume, tmp_path):
    path = saved(tmp_path, data)
    (tmp_path / "last_checkpoint").write_text("w.pth")
    reader = SafeCheckpointer(model(), str(tmp_path))
    with pytest.raises(CheckpointError, match=f"w.pth' {expected}") as error:
        reader.resume_or_load("" if resume else path, resume=resume)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 + len(path)


def test_a_pickle_without_weights_is_named_too(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": None, "__author__": "me"}))
    with pytest.raises(CheckpointError, match="w.pkl' has None under 'model'"):
        SafeCheckpointer(model()).load(str(path))


def torch_file(**how):
    file = io.BytesIO()
    torch.save({"model": model().state_dict()}, file, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    "name,content,words",
    [
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid x", "a pointer of Git LFS"),
        ("w.pkl", b"version https://git-lfs.github.com/spec/v1\noid x", "a pointer of Git LFS"),
        ("w.pth", b"\n<!DOCTYPE html><html></html>", "a web page"),
        ("w.pkl", b"<html></html>", "a web page"),
        ("w.pth", b"\x1f\x8b\x08", "compressed by gzip"),
        ("w.pkl", torch_file(), "a file of torch.save; name it .pth"),
        ("w.pkl", torch_file(_use_new_zipfile_serialization=False), "a file of torch.save"),
        ("w.pth", b"hello world", "no file of torch.save"),
        ("w.safetensors", (80).to_bytes(8, "little") + b'{"w":{}}', "a file of safetensors"),
        ("w.pth", pickle.dumps({"model": {}}), "a pickle that .* name it .pkl"),
    ],
)
def test_other_files_are_told_by_what_they_are(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"no checkpoint: it is {words}") as error:
        SafeCheckpointer(model()).load(str(tmp_path / name))
    assert "SKD_TRUST" not in str(error.value)


def test_a_folder_is_no_file_of_weights(tmp_path):
    with pytest.raises(CheckpointError, match=f"^'{tmp_path}' is a folder"):
        SafeCheckpointer(model()).load(str(tmp_path))


def test_a_name_that_is_not_in_the_catalog_is_told():
    with pytest.raises(CheckpointError, match="^weights is 'catalog://x': .*not present.*: x.$"):
        SafeCheckpointer(model()).load("catalog://x")


@pytest.mark.parametrize(
    "content,expected",
    [
        ({}, "has nothing as weights"),
        ({"blobs": {}}, "has nothing as weights"),
        ({"blobs": 5}, "has a int as weights"),
        ({"blobs": None}, "has None as weights"),
        ({"blobs": np.ones(2)}, "has a ndarray as weights"),
        ({1: np.ones(2)}, "has the name 1 .of type int. as weights"),
    ],
)
def test_pickles_without_weights_are_one_line(content, expected, tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=f"w.pkl' {expected}; there must be tensors by name"):
        SafeCheckpointer(model()).load(str(path))


ODD = {
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")  # nested tensors are a prototype
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_plain_ones_are_named(kind, tmp_path):
    state = {**model().state_dict(), "0.weight": ODD[kind](torch.ones(2, 2))}
    path = saved(tmp_path, {"model": state})
    with pytest.raises(CheckpointError, match=f"^0.weight is a {kind} tensor in the checkpoint"):
        SafeCheckpointer(model()).load(path)
    with pytest.raises(ValueError, match=f"w.pth': 0.weight is a {kind} tensor; it must be a"):
        slim(path, str(tmp_path / "slim.pth"))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_eight_bits_are_read_and_stay_so_in_half_precision(dtype, tmp_path):
    state = {k: torch.full_like(v, 2) for k, v in model().state_dict().items()}
    state["0.weight"] = state["0.weight"].to(dtype)
    path, target = saved(tmp_path, {"model": state}), model()
    SafeCheckpointer(target).load(path)
    assert (target[0].weight == 2).all()
    slim(path, str(tmp_path / "slim.pth"))
    assert torch.load(tmp_path / "slim.pth")["model"]["0.weight"].dtype == dtype


def test_other_projects_state_dict_is_taken_with_a_warning(tmp_path, caplog):
    state = model().state_dict()
    path = saved(tmp_path, {"state_dict": state, "meta": {"epoch": 1}})
    target = model()
    with caplog.at_level(logging.WARNING):
        rest = SafeCheckpointer(target).load(path)
    assert torch.equal(target[0].weight, state["0.weight"]) and rest["meta"] == {"epoch": 1}
    assert "w.pth' has no 'model'; its 'state_dict' is taken." in caplog.text


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_numbers_that_are_not_finite_are_named(value, name, prefix, tmp_path, monkeypatch):
    state = {prefix + k: v for k, v in model().state_dict().items()}
    state[prefix + name].view(-1)[0] = value
    path = saved(tmp_path, {"model": state})
    target = model()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=f"w.pth' has NaN or infinite numbers in {prefix}{name};"
    ):
        SafeCheckpointer(target).load(path)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    monkeypatch.setenv(NON_FINITE_VARIABLE, "1")  # as stock Detectron2
    SafeCheckpointer(target).load(path)
    assert not target.state_dict()[name].isfinite().all()


def test_weights_that_the_last_step_has_broken_are_not_saved(tmp_path, monkeypatch):
    saver = SafeCheckpointer(model(), str(tmp_path))
    saver.save("model_0000001")
    saver.model[0].weight.data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="in 0.weight: 'model_final.pth' is not written"):
        saver.save("model_final")
    assert saver.get_checkpoint_file().endswith("model_0000001.pth")
    monkeypatch.setenv(NON_FINITE_VARIABLE, "1")
    saver.save("model_final")


def test_a_momentum_that_is_not_finite_is_not_resumed(monkeypatch):
    trained = model()
    optimizer = torch.optim.SGD(trained.parameters(), 0.1, momentum=0.9)
    trained(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    check_optimizer(state, optimizer)
    state["state"][0]["momentum_buffer"][0, 0] = math.nan
    with pytest.raises(CheckpointError, match="in 1 tensors .momentum_buffer."):
        check_optimizer(state, optimizer)
    monkeypatch.setenv(NON_FINITE_VARIABLE, "1")
    check_optimizer(state, optimizer)


def test_what_the_model_does_not_take_may_be_anything(tmp_path):
    state = model().state_dict()
    state["mask"][0] = -math.inf
    state["other"] = np.full(2, math.nan)
    path = tmp_path / "w.pkl"
    arrays = {k: np.asarray(v) for k, v in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "me"}))
    target = model()
    SafeCheckpointer(target).load(str(path))
    assert target.mask[0] == -math.inf
