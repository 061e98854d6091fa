"""Files that are not what they say: none runs, hangs, crashes or fills the memory."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skd import build_teacher
from skd.runtime import torch_files
from skd.runtime.checkpoint import SafeCheckpointer
from skd.runtime.pickle_files import load_pickle, load_pickle_file
from skd.runtime.torch_files import load_tensors
from skd.runtime.trust import TRUST_VARIABLE, CheckpointError, DamagedCheckpointError


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
    """Code behind an attribute of something harmless: what allow-lists by module get wrong."""

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


# ---------------------------------------------------------------------------- crafted pickles
def text(x):
    return b"X" + struct.pack("<I", len(x)) + x.encode()


def number(n):
    return b"J" + struct.pack("<i", n)


def name(module, what):
    return b"c" + module.encode() + b"\n" + what.encode() + b"\n"


DTYPE, NDARRAY = name("numpy", "dtype"), name("numpy", "ndarray")
EMPTY = name("numpy.core.multiarray", "_reconstruct") + NDARRAY + b"K\0\x85C\x01b\x87R"
F4 = DTYPE + text("f4") + b"\x89\x88\x87R"
STATE = b"(K\x03" + text("<") + b"NNN" + number(-1) + number(-1) + b"K\0tb"
MANY_ARRAYS = (
    b"B" + struct.pack("<I", 40_000) + bytes(40_000) + b"q\1"
    b"0" + F4 + STATE + b"q\2" + b"0]" + (
        name("numpy.core.numeric", "_frombuffer") + b"(h\1h\2M\x10\x27\x85" + text("C") + b"tRa"
    ) * 9999
)  # fmt: skip


def array(dtype=F4 + STATE, shape=b"K\1\x85", content=b"C\4abcd", fortran=b"\x89"):
    return EMPTY + b"(K\1" + shape + dtype + fortran + content + b"tb"


def dtype(code="f4", state=STATE):
    return DTYPE + text(code) + b"\x89\x88\x87R" + state


FIELD = b"}" + text("a") + number(7) + number(0) + b"\x86s"  # {"a": (7, 0)}: no dtype
FIELDS = b"(K\3" + text("|") + b"N" + text("a") + b"\x85" + FIELD + number(8) + b"K\1" + b"K\x3ftb"
NESTED = b")q\0" + b"h\0\x86q\0" * 60  # t = (t, t), sixty times
CRAFTED = {
    "fields that are no types": array(dtype("V8", FIELDS)),
    "fields of floats": array(dtype("f4", FIELDS)),
    "subtype": array(dtype(state=STATE.replace(b"NNN", b"K\1NN"))),
    "state of a type too short": array(dtype(state=b"K\3\x85b")),
    "state that is no tuple": array(dtype(state=b"Nb")),
    "order": array(dtype(state=STATE.replace(b"<", b"x"))),
    "order that is no text": array(dtype(state=b"(K\3]NNNK\0K\0K\0tb")),
    "type of a type": array(DTYPE + DTYPE + b"\x85R"),
    "type that is no type": array(b"K\1"),
    "type of a name": array(DTYPE),
    "type without end": array(dtype("f99999999")),
    "objects": array(dtype("O8")), "text": array(dtype("U1")), "void": array(dtype("V4")),
    "time": array(dtype("M8")), "several": array(dtype("f4,f4", b"")), "long": array(dtype("f16")),
    "shape of text": array(shape=text("x") + b"\x85"), "no shape": array(shape=b"N"),
    "shape of bools": array(shape=b"\x88\x85"), "negative": array(shape=number(-1) + b"\x85"),
    "negatives": array(shape=number(-1) * 2 + b"\x86"), "list": array(shape=b"](K\1e"),
    "large": array(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7f" + b"\x85"),
    "empty and large": array(
        shape=b"K\0" + b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x86", content=b"C\0"
    ),
    "dimensions": array(shape=b"(" + b"K\1" * 99 + b"t"), "content": array(content=b"K\1"),
    "content of itself": EMPTY + b"q\1(K\1K\1\x85" + F4 + STATE + b"\x89h\1tb",
    "twice": array() + b"(K\1K\1\x85" + F4 + STATE + b"\x89C\4abcdtb",
    "no content": EMPTY, "only a name": NDARRAY, "only a type": F4,
    "a name in a list": b"]" + DTYPE + b"a",
    "state for a dict": b"}}b", "state for a name": NDARRAY + b"}b",
    "state of slots": EMPTY + b"N}\x86b",
    "call of a list": b"](K\1eR", "call of a name": NDARRAY + b")R", "arguments": DTYPE + b"NR",
    "new": NDARRAY + b")\x81", "new with words": NDARRAY + b")}\x92",
    "instance": b"(inumpy\nndarray\n", "object": b"(" + NDARRAY + b"o",
    "extension": b"\x82\x01", "buffer": b"\x97", "read-only": b"N\x98", "unknown": b"\xff",
    "set": b"\x8f", "frozen set": b"(\x91", "append to a name": NDARRAY + b"Na",
    "append to an array": EMPTY + b"(NNe", "items for an array": EMPTY + b"NNs",
    "key of nested tuples": b"}" + NESTED + b"Ns", "value of nested tuples": NESTED,
    "many of nested tuples": b"}(" + NESTED + b"Nu", "dict of nested tuples": b"(" + NESTED + b"Nd",
    "key of an array": b"}" + array() + b"Ns", "key of a list": b"}]Ns", "odd": b"}(Nu.",
    "key of a number": b"}\x8a\x0a" + b"\xff" * 9 + b"\x01" + b"Ns",
    "ordered by nested tuples": (
        name("collections", "OrderedDict") + b"](" + NESTED + b"N\x86e\x85R"
    ),
    "itself": b"]q\1h\1a", "itself in a dict": b"}q\1Nh\1s", "deep": b"]" * 5000 + b"a" * 4999,
    "deep tuples": b")" + b"\x85" * 100_000, "many arrays": MANY_ARRAYS,
    "encoded often": (
        text("x" * 40_000) + b"q\0]" + (
            name("_codecs", "encode") + b"h\0" + text("latin1") + b"\x86Ra"
        ) * 9999
    ),
    "encoded otherwise": name("_codecs", "encode") + text("x") + text("zip") + b"\x86R",
    "scalar of text": name("numpy.core.multiarray", "scalar") + F4 + text("abc") + b"\x86R",
    "memory": b"r\xff\xff\xff\x7f0", "memory not there": b"j\xff\xff\xff\x7f",
    "bytes": b"\x96" + (2**40).to_bytes(8, "little"), "frame": b"\x95" + b"\xff" * 8,
    "digits": b"L" + b"9" * 100_000 + b"L\n", "number": b"\x8b\xff\xff\xff\x7f", "text end": b"Vx",
    "control": b"c\x1b[31m\nx\n", "long name": b"c" + b"x" * 10**6 + b"\ny\n",
}  # fmt: skip


@pytest.mark.parametrize("crafted", CRAFTED)
def test_crafted_pickles_are_refused(crafted, tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x04}" + text("model") + b"}" + text("w") + CRAFTED[crafted] + b"ss.")
    with pytest.raises(CheckpointError, match="w.pkl' is") as error:
        load_pickle(str(path))
    assert len(str(error.value)) < 1000 and str(error.value).isprintable()


def test_the_crafted_array_is_otherwise_good(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x04}" + text("w") + array() + b"s.")
    assert load_pickle(str(path))["w"].tobytes() == b"abcd"


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("pid", ["x", (1, (2, 3)), None])
def test_persistent_ids_are_refused(protocol, pid, tmp_path):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return pid if value == "here" else None

    if protocol == 0 and not isinstance(pid, str):
        pid = "0"
    pid = "1" if pid is None else pid
    with open(tmp_path / "w.pkl", "wb") as f:
        Pickler(f, protocol).dump({"model": "here"})
    with pytest.raises(CheckpointError, match="refused.*a persistent load"):
        load_pickle(str(tmp_path / "w.pkl"))


def test_nested_persistent_ids_do_not_hang(tmp_path):
    (tmp_path / "w.pkl").write_bytes(b"\x80\x04" + NESTED + b"Q.")
    with pytest.raises(CheckpointError, match="persistent"):
        load_pickle(str(tmp_path / "w.pkl"))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("code", ["f2", "f4", "f8", "i2", "i8", "u4", "c8"])
def test_big_endian_arrays_come_in_the_machines_order(code, protocol, tmp_path):
    values = np.arange(6).reshape(2, 3)
    content = {"a": values.astype(f">{code}"), "b": np.array(5, f">{code}")[()]}
    loaded = load_pickle(write_pickle(tmp_path / "a.pkl", content, protocol))
    np.testing.assert_array_equal(loaded["a"], values)
    assert loaded["a"].dtype == np.dtype(code) and loaded["a"].dtype.isnative and loaded["b"] == 5
    torch.from_numpy(loaded["a"]) if code != "u4" else None
    assert loaded["a"].flags.writeable


def test_shared_arrays_stay_shared_and_old_dicts_load(tmp_path):
    one = np.ones(3, np.float32)
    loaded = load_pickle(write_pickle(tmp_path / "a.pkl", {"a": one, "b": [one], "c": (one,)}))
    assert loaded["a"] is loaded["b"][0] is loaded["c"][0]
    pairs = b"](](" + text("k") + b"K\1ee"
    path = tmp_path / "b.pkl"
    path.write_bytes(b"\x80\x02" + name("collections", "OrderedDict") + pairs + b"\x85R.")
    assert load_pickle(str(path)) == OrderedDict(k=1)


SEEDS = [
    pickle.dumps({"model": OrderedDict(a=np.ones((2, 2), np.float32), b=np.float64(1))}, protocol)
    for protocol in range(6)
] + [b"\x80\x04}" + text("w") + x + b"s." for x in CRAFTED.values() if len(x) < 400]


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_bytes_are_data_or_one_error(data):
    """Seeds with bytes changed, cut and joined; a crash would end the tests."""
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 6))):
        place = data.draw(st.integers(0, len(content)))
        piece = data.draw(
            st.binary(max_size=3)
            | st.sampled_from(b"( ) R b t 0 1 2 } ] N h\0 h\1 q\1 a e s u d l \x85 \x86".split())
        )
        content[place : place + data.draw(st.integers(0, 3))] = piece
    try:
        loaded = load_pickle_file(io.BytesIO(content), "x.pkl")
    except CheckpointError:
        return
    assert_plain(loaded)


def assert_plain(value):
    if isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            assert_plain(inner)
    elif isinstance(value, np.ndarray):
        assert not value.dtype.hasobject and value.dtype.isnative
    else:
        plain = (str, bytes, int, float, bool, type(None), np.number, np.bool_)
        assert isinstance(value, plain), type(value)


# ------------------------------------------------------------------------------------ weights
@pytest.mark.parametrize("extension", ["pkl", "pth"])
@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.bool_, np.complex64])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_another_kind_are_refused(prefix, kind, extension, tmp_path):
    model = torch.nn.Linear(2, 2)
    before = model.weight.detach().clone()
    weights = {f"{prefix}weight": np.ones((2, 2), kind), f"{prefix}bias": np.ones(2, np.float32)}
    path = str(tmp_path / f"w.{extension}")
    if extension == "pkl":
        write_pickle(path, {"model": weights, "__author__": "me"})
    else:
        torch.save({"model": {k: torch.from_numpy(v) for k, v in weights.items()}}, path)
    with pytest.raises(CheckpointError, match="weight is torch.* it must be of floating point"):
        SafeCheckpointer(model).load(path)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("kind", [np.float16, np.float64, ">f4"])
def test_weights_of_other_floats_and_counters_load(kind, tmp_path):
    model = torch.nn.BatchNorm1d(2)
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    state = {k: v.astype(kind) if v.ndim else v for k, v in state.items()}
    state["weight"] = np.array([2, 3], kind)
    path = write_pickle(tmp_path / "w.pkl", {"model": state, "__author__": "me"})
    SafeCheckpointer(model).load(path)
    assert model.weight.tolist() == [2, 3]


# ---------------------------------------------------------------------------------- proposals
def proposals(folder, **more):
    content = {
        "indexes": [7, 8],
        "boxes": [np.ones((2, 4), np.float32), np.zeros((1, 4), np.float32)],
        "scores": [np.array([1, 2], np.float32), np.array([3], np.float32)],
    }
    return write_pickle(folder / "proposals.pkl", {**content, **more})


def test_proposals_are_read_as_data(tmp_path):
    path = proposals(tmp_path, bbox_mode=BoxMode.XYWH_ABS)
    records = load_proposals_into_dataset([{"image_id": 7}], path)
    assert records[0]["proposal_bbox_mode"] is BoxMode.XYWH_ABS
    assert records[0]["proposal_objectness_logits"].tolist() == [2, 1]


def test_proposals_that_run_code_are_refused(tmp_path, monkeypatch):
    path = proposals(tmp_path, more=Runs(tmp_path / "marker"))
    with pytest.raises(CheckpointError, match="proposals.pkl' is refused: loading it would run"):
        load_proposals_into_dataset([{"image_id": 7}], path)
    assert not (tmp_path / "marker").exists()
    monkeypatch.setenv(TRUST_VARIABLE, path)
    load_proposals_into_dataset([{"image_id": 7}], path)
    assert (tmp_path / "marker").exists()


def nested(depth, width):
    """A dict whose key is a tuple of the same tuple, and so on: written without hashing it."""
    level = {1: b"\x85", 2: b"q\x01h\x01\x86"}[width]
    return b"\x80\x02}q\x00)" + level * depth + b"K\x01s."


def zipped(path, data):
    """Write a file as torch.save does, with another data.pkl."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in records.items():
            new.writestr(name, data if name.endswith("data.pkl") else content)
    return str(path)


@pytest.mark.parametrize("depth,width", [(60, 2), (1_000_000, 1), (30, 2)])
def test_torchs_reader_hashes_no_key_that_takes_for_ever_or_crashes(depth, width, tmp_path):
    path = zipped(tmp_path / "weights.pth", nested(depth, width))
    with pytest.raises(DamagedCheckpointError, match="too many values, or nested too deep"):
        load_tensors(path)


def test_the_check_of_a_pickle_takes_no_longer_than_the_pickle_is_long(monkeypatch):
    """What lies below a mark is not copied for each mark."""

    class Stack(list):
        copied = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            Stack.copied += len(found) if isinstance(key, slice) else 0
            return found

    walker = torch_files._HashCost(io.BytesIO(b"\x80\x02" + b"N" * 500 + b"(t0" * 500 + b"."))
    walker.stack = Stack()
    walker.walk()
    assert Stack.copied < 5000
    monkeypatch.setattr(torch_files, "MAX_OPERATIONS", 10)
    with pytest.raises(ValueError, match="more than 10 operations"):
        torch_files._HashCost(io.BytesIO(b"\x80\x02" + b"N" * 20 + b".")).walk()


def test_nested_keys_of_the_old_format_neither(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({}, path, _use_new_zipfile_serialization=False)
    whole, empty = path.read_bytes(), pickle.dumps({}, 2)
    assert whole.count(empty) == 1
    path.write_bytes(whole.replace(empty, nested(60, 2)))
    with pytest.raises(DamagedCheckpointError, match="too many values, or nested too deep"):
        load_tensors(str(path))


@pytest.mark.parametrize("new", [True, False])
def test_what_training_saves_is_read(new, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "shape": (1, (2, 3))}
    torch.save(saved, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    loaded = load_tensors(str(tmp_path / "w.pth"))
    assert loaded["shape"] == (1, (2, 3)) and loaded["optimizer"]["param_groups"][0]["betas"]
    assert all(torch.equal(v, loaded["model"][k]) for k, v in saved["model"].items())


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match="no checkpoint: the file is empty[.]$"):
        load_tensors(str(tmp_path / "w.pth"))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_module_s_state_dict_keeps_its_metadata_to_itself(protocol, tmp_path):
    """Its attribute _metadata is in the pickle; Detectron2 loads such files."""
    state = torch.nn.Linear(2, 3).state_dict()
    for name, value in state.items():
        state[name] = value.numpy()
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "x"}, protocol))
    loaded = load_pickle(str(path))["model"]
    assert list(loaded) == ["weight", "bias"]
    assert np.array_equal(loaded["weight"], state["weight"])
