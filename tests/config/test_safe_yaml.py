"""Config files that would run code."""

import pytest
from detectron2.config import get_cfg

from skd import add_skd_config, register_coco
from skd.config import merge_file
from skd.config.safe_yaml import UnsafeConfigError, check_yaml
from skd.modeling.teacher import find_config
from skd.runtime.checkpoint import TRUST_VARIABLE

ATTACKS = {
    "apply": "A: !!python/object/apply:os.system ['touch {marker}']",
    "new": "A: !!python/object/new:os.system ['touch {marker}']",
    "eval": "A: !!python/object/apply:eval [\"__import__('os').system('touch {marker}')\"]",
    "exec": "A: !!python/object/apply:exec [\"open('{marker}', 'w')\"]",
    "nested": "MODEL:\n  B: [1, {{C: !!python/object/apply:os.system ['touch {marker}']}}]",
    "name": "A: !!python/name:os.system",
    "module": "A: !!python/module:os",
    "key": "? !!python/object/apply:os.system ['touch {marker}']\n: 1",
    "lookup": "A: !!python/object/apply:eval ['[x.__class__ for x in [1]]']",
    "call": "A: !!python/object/apply:eval ['[open for x in [1]]']",
    "two arguments": "A: !!python/object/apply:eval ['1', {{}}]",
    "huge": "A: !!python/object/apply:eval ['9**9**9**9**9**9']",
}


def config():
    cfg = get_cfg()
    add_skd_config(cfg)
    return cfg


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("attack", ATTACKS)
def test_files_that_run_code_are_refused_and_named(attack, based, tmp_path):
    marker = tmp_path / "marker"
    evil = tmp_path / "evil.yaml"
    evil.write_text(ATTACKS[attack].format(marker=marker))
    given = evil
    if based:
        given = tmp_path / "good.yaml"
        given.write_text("_BASE_: evil.yaml\nMODEL:\n  MASK_ON: True\n")
    with pytest.raises(UnsafeConfigError, match=f"evil.yaml', line .* run code.*{TRUST_VARIABLE}"):
        merge_file(config(), str(given))
    assert not marker.exists()


def test_the_zoos_arithmetic_is_read():
    cfg = config()
    merge_file(cfg, find_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[0][0] == 32
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == 5


def test_who_is_trusted_by_name_is_read(tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text("SEED: !!python/object/apply:int ['7']")
    with pytest.raises(UnsafeConfigError):
        check_yaml(str(path))
    monkeypatch.setenv(TRUST_VARIABLE, str(path))
    cfg = config()
    merge_file(cfg, str(path))
    assert cfg.SEED == 7


@pytest.mark.parametrize("content", [b"a: [", b"a: b: c", b"\xff\xfe\x00", b"{a", b"- &a [*a"])
def test_what_is_no_yaml_is_one_error(content, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="bad.yaml' is no YAML"):
        check_yaml(str(path))


def test_circles_end(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\nX: &x [*x]\n")
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    check_yaml(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "a b", "/etc/x"])
def test_a_data_sets_name_is_no_path(name, tmp_path):
    with pytest.raises(ValueError, match="a name may have letters, digits"):
        register_coco(name, "x.json", str(tmp_path))
