"""YAML is read as data, once, by us: nothing in it runs, and nothing small grows large."""

import glob
import logging
import os

import pytest
import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skd import DistillRCNN, add_skd_config, distill, register_coco, train_net
from skd.config import is_lazy_file, lazy_config, merge_file, read_config
from skd.config.safe_yaml import (
    MAX_BYTES,
    MAX_FILE_DEPTH,
    MAX_VALUES,
    UnsafeConfigError,
    _load,
    evaluate,
    read_yaml,
    read_yaml_with_base,
)
from skd.config.yaml_config import override
from skd.modeling.teacher import build_teacher
from skd.runtime.trust import TRUST_VARIABLE
from skd.study.compare.design import Study
from tests.helpers import ROOT

RUNS = "!!python/object/apply:os.mkdir ['{marker}']"
ATTACKS = {
    "apply": f"A: {RUNS}",
    "new": "A: !!python/object/new:os.mkdir ['{marker}']",
    "eval": "A: !!python/object/apply:eval [\"__import__('os').mkdir('{marker}')\"]",
    "exec": "A: !!python/object/apply:exec [\"open('{marker}', 'w')\"]",
    "nested": f"MODEL:\n  B: [1, {{{{C: {RUNS}}}}}]",
    "name": "A: !!python/name:os.mkdir",
    "module": "A: !!python/module:os",
    "object": "A: !!python/object:os.mkdir {{}}",
    "key": f"? {RUNS}\n: 1",
    "merge key": f"<<: {{{{A: {RUNS}}}}}",
    "in arithmetic": f"A: !!python/object/apply:eval [{RUNS}]",
    "in a shape": "A: !!python/object:detectron2.layers.shape_spec.ShapeSpec {{height: x}}",
    "verbose tag": "A: !<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{marker}']",
    "tag directive": "%TAG !p! tag:yaml.org,2002:python/\n---\nA: !p!object/apply:os.mkdir [x]",
    "lookup": "A: !!python/object/apply:eval ['[x.__class__ for x in [1]]']",
    "call": "A: !!python/object/apply:eval ['[open for x in [1]]']",
    "text": "A: !!python/object/apply:eval [\"'text'\"]",
    "two arguments": "A: !!python/object/apply:eval ['1', {{}}]",
    "no list": "A: !!python/object/apply:eval {{args: ['1']}}",
    "huge": "A: !!python/object/apply:eval ['9**9**9**9**9**9']",
}
LEADS = {  # ways to name another file
    "key": "_BASE_: evil.yaml",
    "list": "_BASE_: [good.yaml, evil.yaml]",
    "merge key": "<<: {_BASE_: evil.yaml}",
    "merge keys": "<<: [{A: 1}, {_BASE_: evil.yaml}]",
    "alias": "X: &x evil.yaml\n_BASE_: *x",
    "tag": "!!python/str _BASE_: !!python/str evil.yaml",
    "tuple": "!!str _BASE_: !!str evil.yaml",
    "quoted": '"\\x5fBASE_": "evil\\x2eyaml"',
}


def config():
    cfg = get_cfg()
    add_skd_config(cfg)
    return cfg


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content)
    return str(folder / f"{next(iter(files))}.yaml")


@pytest.mark.parametrize("attack", ATTACKS)
def test_files_that_run_code_are_refused_and_named(attack, tmp_path):
    marker = tmp_path / "marker"
    evil = write(tmp_path, evil=ATTACKS[attack].format(marker=marker))
    for read in (lambda path: merge_file(config(), path), read_yaml, lazy_config.read):
        with pytest.raises(UnsafeConfigError, match=f"evil.yaml', line .* code.*{TRUST_VARIABLE}"):
            read(evil)
    assert not marker.exists()


@pytest.mark.parametrize("lead", LEADS)
def test_so_are_those_they_lead_to(lead, tmp_path):
    marker = tmp_path / "marker"
    evil = ATTACKS["apply"].format(marker=marker)
    path = write(tmp_path, first=LEADS[lead], good="MODEL: {}", evil=evil)
    with pytest.raises(UnsafeConfigError, match="evil.yaml', line 1"):
        merge_file(config(), path)
    assert not marker.exists()


def test_a_binary_key_leads_nowhere(tmp_path):
    path = write(tmp_path, first="!!binary X0JBU0Vf: evil.yaml", evil="A: [")
    with pytest.raises(ValueError, match="first.yaml' has what no config may have"):
        merge_file(config(), path)


@pytest.mark.parametrize(
    "text,words",
    [
        ("MODEL:", "MODEL is None; it must hold keys"),
        ("MODEL: 5", "MODEL is 5; it must hold keys"),
        ("MODEL: {STUDENT: {PROJECTS: 5}}", "MODEL.STUDENT.PROJECTS is 5; it must be a list"),
    ],
)
def test_sections_that_are_none_are_named(text, words, tmp_path):
    with pytest.raises(ValueError, match=f"first.yaml' has .*{words}"):
        merge_file(config(), write(tmp_path, first=text))


def zoo():
    folder = os.path.join(os.path.dirname(model_zoo.__file__), "configs")
    files = [*glob.glob(f"{folder}/**/*.yaml", recursive=True)]
    return files + glob.glob(os.path.join(ROOT, "configs", "**", "*.yaml"), recursive=True)


def test_every_config_reads_as_detectron2_reads_it(caplog):
    caplog.set_level(logging.CRITICAL)
    files = zoo()
    assert len(files) > 100
    for path in files:
        theirs = CfgNode.load_yaml_with_base(path, allow_unsafe=True)
        assert repr(read_yaml_with_base(path)) == repr(theirs), path


@pytest.mark.parametrize("leaf", ["COCO-Detection/retinanet_R_50_FPN_1x.yaml", "old"])
def test_every_config_merges_as_detectron2_merges_it(leaf, tmp_path):
    path = os.path.join(os.path.dirname(model_zoo.__file__), "configs", leaf)
    if leaf == "old":
        path = write(tmp_path, old="MODEL: {WEIGHT: w.pkl}\nTEST: {AUG_ON: True}\n")
    theirs, ours = config(), config()
    theirs.merge_from_file(path)
    merge_file(ours, path)
    assert ours == theirs and ours != config()


DATA = """
a: &a {x: 1, y: [1, 2.5, 1e3, .inf, 0x10, 0b1, 017, 1_000, 190:20:30, ~, yes, 2001-01-01]}
b: {<<: *a, x: 2}
c: {<<: [{x: 3, z: 4}, *a]}
d: !!python/tuple [1, !!python/tuple [2, [3]]]
e: [!!python/int "1", !!python/float "2", !!python/str x, !!python/bool "yes", !!python/none ""]
f: !!python/object/apply:eval ["[(x, -x % 7, x // 3, +x - 1) for y in [[1, 2], [3]] for x in y]"]
g: !!python/list [1]
h: !!python/dict {=: 1}
i: !!python/object:detectron2.layers.shape_spec.ShapeSpec {channels: 256, height: null}
? !!python/tuple [1, 2]
: {x: 1, x: 2}
"""


def test_plain_data_reads_as_yaml_reads_it(tmp_path):
    ours = read_yaml(write(tmp_path, data=DATA))
    assert repr(ours) == repr(yaml.unsafe_load(DATA))
    assert ours["f"] == [(1, 6, 0, 0), (2, 5, 0, 1), (3, 4, 1, 2)]
    assert ours["i"] == ShapeSpec(channels=256)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "1 +", "'a'", "b'a'", "True", "1j", "(-8) ** 0.5", "1 / 0", "2 ** 64", "2 ** 1e9",
        "1e400", "[1] * 10**9", "[1] + [2]", "not 1", "~1", "1 << 3", "1 < 2", "lambda: 1",
        "f'{1}'",
        "[x for x in 3]",
        "[x for x in [1] if x]", "[x for x, y in [[1, 2]]]", "{1: 2}", "{1}",
        "[x async for x in [1]]", "(x := 3)", "[x for y in [1]]", "x.y", "abs(1)", "[1][0]", "...",
        "-" * 999 + "1", "(" * 999, "1" * 1001, "[" + "1," * 600 + "]", "0." + "0" * 2000,
        f"[{'[x, ' * 3}1{']' * 3} for x in {list(range(100))} for y in {list(range(100))} for z in "
        f"{list(range(100))}]",
        "[[a, a] for a in " * 30 + "[[1]]" + "]" * 30,
    ],
)  # fmt: skip
def test_what_is_no_arithmetic_is_refused_at_once(text):
    with pytest.raises(ValueError):
        evaluate(text)


def test_who_is_trusted_by_name_is_read(tmp_path, monkeypatch):
    path = write(tmp_path, mine="SEED: !!python/object/apply:int ['7']")
    with pytest.raises(UnsafeConfigError):
        merge_file(config(), path)
    monkeypatch.setenv(TRUST_VARIABLE, path)
    cfg = config()
    merge_file(cfg, path)
    assert cfg.SEED == 7


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 36))
BROKEN = {
    "open": b"a: [", "colon": b"a: b: c", "bytes": b"\xff\xfe\x00", "brace": b"{a",
    "nul": b"a: \x00", "circle": b"- &a [*a", "self": b"a: &a [*a]",
    "self in a mapping": b"a: &a {b: {c: *a}}",
    "self by merging": b"a: &a {<<: *a}", "no anchor": b"a: *b",
    "two": b"a: 1\n---\nb: 2", "tag": b"a: !mine 1", "bool": b"a: !!bool x", "int": b"a: !!int ''",
    "time": b"a: !!timestamp x", "float": b"a: !!float x", "unhashable": b"? [1]\n: 2",
    "binary": b"a: !!binary '&'",
    "merge": b"<<: 3", "list": b"- 1", "text": b"just text", "set": b"a: !!set {b}",
    "date": b"a: 2001-01-01", "integer key": b"MODEL: {1: {a: 2}}", "version": b"VERSION: x",
    "future": b"VERSION: 99", "past": b"VERSION: -1", "base": b"_BASE_: {a: b}",
    "base of numbers": b"_BASE_: [1]", "base and value": b"_BASE_: other.yaml\nA: {b: 1}",
    "billion laughs": LAUGHS.encode(),
    "laughs of mappings": (
        LAUGHS.replace("[", "{k: ").replace(", ", ", l: ").replace("]", "}").encode()
    ),
    "laughs of merging": (
        LAUGHS.replace("[", "{<<: [").replace("]", "]}").replace("x", "{}").encode()
    ),
    "laughs of text": f"a: &a {'x' * 9999}\nb: [{'*a, ' * 9999}]".encode(),
    "laughs of arithmetic": (
        f"a: &a !!python/object/apply:eval ['1']\nb: [{'*a, ' * 9999}]".encode()
    ),
    # below the limit of characters, and minutes of making a config of it
    "smiles of mappings": (
        "".join(LAUGHS.splitlines(True)[:16]).replace("[", "{k: ").replace(", ", ", l: ")
        .replace("]", "}").encode()
    ),
    "many": b"a: [" + b"1," * MAX_VALUES + b"1]",
    "deep": b"[" * 100_000, "deep mappings": b"{a: " * 100_000, "deep block": b"- " * 100_000,
    "deep keys": b"? " * 100_000, "deep by aliases": "".join(
        f"a{i}: &a{i} [{'*a%d' % (i - 1) if i else ''}]\n" for i in range(99)
    ).encode(),
    "base 60": b"a: 1" + b":1" * 400_000, "long number": b"a: " + b"1" * 100_000,
    "hidden number": b"a: !!int {=: 1" + b":1" * 400_000 + b"}",
    "hexadecimal": b"a: 0x" + b"f" * 99,
    "large": b"#" * (MAX_BYTES + 1), "keys of one hash": b"{%s}" % b", ".join(
        b"%d: 1" % (i * (2**61 - 1)) for i in range(3_000)
    ),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_config_is_one_error(broken, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(BROKEN[broken])
    (tmp_path / "other.yaml").write_text("A: 1")
    with pytest.raises(ValueError, match="bad.yaml'") as error:
        merge_file(config(), str(path))
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("first", ["_BASE_: first.yaml", "_BASE_: ./second.yaml"])
def test_circles_of_files_end(first, tmp_path):
    path = write(tmp_path, first=first, second="_BASE_: second.yaml")
    with pytest.raises(ValueError, match="based on"):
        merge_file(config(), path)


def test_files_on_files_are_bounded(tmp_path):
    deep = {f"a{i}": f"_BASE_: a{i + 1}.yaml" for i in range(MAX_FILE_DEPTH + 1)}
    with pytest.raises(ValueError, match="a0.yaml' is based on too many files"):
        read_yaml_with_base(write(tmp_path, **deep))
    wide = {f"b{i}": f"_BASE_: [{f'b{i + 1}.yaml, ' * 9}]" for i in range(9)}
    with pytest.raises(ValueError, match="b0.yaml' is based on too many files"):
        read_yaml_with_base(write(tmp_path, **wide, b9="A: 1"))
    large = "#" * (MAX_BYTES // 3)
    with pytest.raises(ValueError, match="too large"):
        read_yaml_with_base(
            write(tmp_path, c=f"_BASE_: [c1.yaml, c1.yaml, c1.yaml]\n{large}", c1=large)
        )


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device"])
def test_what_is_no_file_does_not_hang(kind, tmp_path):
    path = str(tmp_path / "x.yaml") if kind != "device" else "/dev/zero"
    if kind == "folder":
        os.mkdir(path)
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(FileNotFoundError, match=os.path.basename(path)):
        merge_file(config(), write(tmp_path, first=f"_BASE_: {path}"))


def test_bases_are_found_as_detectron2_finds_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    write(tmp_path, a="A: {x: 1, y: 1}", b="A: {y: 2, z: 2}\nC: [1]")
    first = write(
        tmp_path / "sub", first=f"_BASE_: ['~/a.yaml', ../b.yaml, {tmp_path}/a.yaml]\nA: {{z: 3}}"
    )
    expected = {"A": {"x": 1, "y": 1, "z": 3}, "C": [1]}
    assert read_yaml_with_base(first) == expected == CfgNode.load_yaml_with_base(first)


PIECES = st.sampled_from(
    "a b _BASE_ evil.yaml : ? - [ ] { } , & * ! !! !!python/ tuple object/apply: eval os.mkdir"
    " name: marker << = | > ' \" # % @ ` \n \t \x00 1 .5 0x : ~ yes 2001-01-01 !!binary &x *x <<:"
    " -- --- ..."
    " \u00e9 \U0001f600 : \n- \n?".split(" ") + [" ", "\n", "\n  ", ": ", ", "]
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(PIECES, max_size=30).map("".join))
def test_any_text_is_data_or_one_of_two_errors(text):
    try:
        ours = _load(text.encode(), "x.yaml")
    except (UnsafeConfigError, ValueError):
        return
    try:
        theirs = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return  # tuples and arithmetic
    assert repr(ours) == repr(theirs)


# ------------------------------------------------------------------------------- LazyConfigs
LAZY = "import os\n\nos.mkdir({marker!r})\nmodel = dict(_target_='os.getcwd')\n"


def student(teacher, opts=()):
    """A distilling config, as a YAML file would have it."""
    cfg = config()
    cfg.MODEL.META_ARCHITECTURE = "DistillRCNN"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.TEACHER.CONFIG_FILE = str(teacher)
    cfg.MODEL.TEACHER.RANDOM_WEIGHTS = True
    cfg.MODEL.TEACHER.OPTS = list(opts)
    return cfg


def lazy_file(folder, kind):
    path = folder / f"teacher.{kind}"
    marker = str(folder / "marker")
    text = f"model: {{_target_: os.mkdir, path: {marker}}}\n"
    path.write_text(LAZY.format(marker=marker) if kind == "py" else text)
    return path, folder / "marker"


@pytest.mark.parametrize("kind", ["py", "yaml"])
def test_a_path_in_a_yaml_is_not_the_users_word(kind, tmp_path):
    path, marker = lazy_file(tmp_path, kind)
    with pytest.raises(UnsafeConfigError, match="CONFIG_FILE is '.*teacher.*--trust-lazy"):
        DistillRCNN(student(path))
    assert not marker.exists()


def trust_lazy(path, folder):
    config = write(
        folder,
        student=f"""
_BASE_: {ROOT}/configs/shapes/student.yaml
MODEL:
  META_ARCHITECTURE: DistillRCNN
  TEACHER: {{CONFIG_FILE: {path}, RANDOM_WEIGHTS: True}}
OUTPUT_DIR: {folder}/out
""",
    )
    train_net.setup(
        train_net.argument_parser().parse_args(["--config-file", config, "--trust-lazy"])
    )


@pytest.mark.parametrize("kind", ["py", "yaml"])
@pytest.mark.parametrize("word", ["--teacher", "option", "variable", "--trust-lazy", "Python"])
def test_these_are_the_users_word(word, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(lazy_config, "_allowed", set())
    path, marker = lazy_file(tmp_path, kind)
    cfg = student(path)
    if word == "--teacher":
        distill(cfg, str(path))
    elif word == "option":
        override(cfg, ["MODEL.TEACHER.CONFIG_FILE", str(path)])
    elif word == "variable":
        monkeypatch.setenv(TRUST_VARIABLE, str(path))
    elif word == "--trust-lazy":
        trust_lazy(path, tmp_path)
    with pytest.raises(Exception):  # it is no detector
        build_teacher(str(path), random_weights=True) if word == "Python" else DistillRCNN(cfg)
    assert marker.exists()


@pytest.mark.parametrize("place", ["detectors", "teachers"])
def test_a_study_is_not_the_users_word(place, tmp_path, monkeypatch):
    path, marker = lazy_file(tmp_path, "py")
    plain = {"config": os.path.join(ROOT, "configs", "shapes", "student.yaml"), "weights": "w.pth"}
    spec = {
        "iterations": 1, "seeds": [1], "methods": {}, "teachers": {"it": plain},
        "detectors": {"it": plain},
        "compare": [{"name": "x", "detector": "it", "methods": ["baseline"]}],
    }  # fmt: skip
    Study(spec, str(tmp_path / "work")).check()
    spec[place] = {"it": {"config": str(path), "weights": "w.pth"}}
    with pytest.raises(UnsafeConfigError, match=f"config is '{path}', a LazyConfig"):
        Study(spec, str(tmp_path / "work")).check()
    monkeypatch.setenv(TRUST_VARIABLE, str(path))
    Study(spec, str(tmp_path / "work")).check()
    assert not marker.exists()  # train_net.py will read it


def test_a_file_here_does_not_pass_for_the_zoos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py"
    (tmp_path / "new_baselines").mkdir()
    (tmp_path / name).write_text(LAZY.format(marker=str(tmp_path / "marker")))
    with pytest.raises(UnsafeConfigError, match=name):
        DistillRCNN(student(name))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "option",
    [
        "model.zzz={{_target_: os.mkdir, path: '{marker}'}}",
        "+model.zzz={{_target_: os.mkdir, path: '{marker}'}}",
        "model.zzz=[1, {{a: {{_target_: os.mkdir, path: '{marker}'}}}}]",
        "model.backbone._target_=os.mkdir",
        "model.zzz=${{dataloader}}",
        "model.zzz.{{_target_}}=os.mkdir",
    ],
)
def test_options_in_a_yaml_change_no_target(option, tmp_path):
    marker = tmp_path / "marker"
    cfg = student(
        "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py", [option.format(marker=str(marker))]
    )
    with pytest.raises(Exception) as error:
        DistillRCNN(cfg)
    assert isinstance(error.value, UnsafeConfigError) or "Lexer" in str(error.value)
    assert not marker.exists()


def test_options_in_a_yaml_change_values():
    cfg = lazy_config.read(
        os.path.join(ROOT, "configs", "COCO-Detection", "skd_fcos_R_50_FPN_1x.py")
    )
    cfg = lazy_config.override_values(cfg, ["train.max_iter=3"], "MODEL.TEACHER.OPTS")
    assert cfg.train.max_iter == 3


@pytest.mark.parametrize(
    "text,expected",
    [
        ("model: {_target_: x}", True),
        ("train: {}\nmodel:\n  _target_: x", True),
        ("'model': {'_target_': !!python/name:x.y }", True),
        ("MODEL: {}\nmodel: {_target_: x}", False),
        ("MODEL: {x: |\n\n  model:\n}", False),
        ("model: !!python/object/apply:os.mkdir [x]", False),
        ("model: 1", False),
        ("model: {}", False),
        ("x: |\n  a\nDESCRIPTION: '\nmodel: {_target_: x}'", False),
        ("", False),
    ],
)
def test_lazy_files_are_told_by_what_they_hold(text, expected, tmp_path):
    text = text.replace("{x: |\n\n  model:\n}", "{}")
    assert is_lazy_file(write(tmp_path, file=text)) is expected


def test_a_saved_lazy_config_is_read_back(tmp_path):
    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"
    cfg = lazy_config.read(os.path.join(os.path.dirname(model_zoo.__file__), "configs", name))
    saved = str(tmp_path / "config.yaml")
    lazy_config.LazyConfig.save(cfg, saved)
    assert is_lazy_file(saved)
    assert read_config(saved) == lazy_config.LazyConfig.load(saved)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "a b", "/etc/x"])
def test_a_dataset_s_name_is_no_path(name, tmp_path):
    with pytest.raises(ValueError, match="a name may have letters, digits"):
        register_coco(name, "x.json", str(tmp_path))
