"""A run and its folder: resumed as itself, with a word about what changed, one at a time."""

import json
import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from skd import student_config
from skd.config import yaml_config
from skd.distillers import GradientBalance
from skd.engine import SKDTrainer, beside_training, describe
from skd.runtime import lock, record
from skd.runtime.checkpoint import CheckpointError, SafeCheckpointer
from skd.runtime.lock import FolderInUseError
from skd.runtime.record import RunFacts
from skd.runtime.run_folder import RunFolder, open_folder
from skd.runtime.words import named_by
from tests.helpers import Balanced, distilling, lazy_config, save_detector, tiny_config
from tests.processes import environment


@pytest.fixture
def base(teacher_files, shapes, tmp_path):
    """A config of a few seconds."""
    cfg = distilling(
        tiny_config(
            "retinanet", SEED=3, SOLVER__MAX_ITER=2, INPUT__MIN_SIZE_TRAIN=(64,),
            INPUT__MAX_SIZE_TRAIN=64, DATASETS__TEST=(),
        ),
        teacher_files,
    )  # fmt: skip
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    return cfg


def start(cfg, resume=False, **changes):
    cfg = cfg.clone()
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    trainer = SKDTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def train(cfg, resume=False, **changes):
    trainer = start(cfg, resume, **changes)
    trainer.train()
    return trainer


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "skd.runtime.run_folder"]


CHANGES = [
    {"SEED": 4},
    {"SOLVER__IMS_PER_BATCH": 4},
    {"SOLVER__BASE_LR": 0.02},
    {"SOLVER__CLIP_GRADIENTS__CLIP_VALUE": 0.123},
    {"DATASETS__TRAIN": ("tiny_val",)},
    {"MODEL__DISTILLER__STRUCTURED__WEIGHT_AM": 1e-4},
    {"MODEL__RETINANET__FOCAL_LOSS_ALPHA": 0.3},
    {"INPUT__RANDOM_FLIP": "none"},
]


def test_what_changed_is_named_in_one_warning_and_the_run_goes_on(base, caplog):
    """All at once, to train but once: each is named, with both values."""
    train(base)
    every = {k: v for change in CHANGES for k, v in change.items()}
    with caplog.at_level(logging.WARNING):
        trainer = start(base, resume=True, **every)
    (said,) = warnings(caplog)
    for key in every:
        assert f"{key.replace('__', '.')}: " in said
    assert "SOLVER.BASE_LR: 0.01 -> 0.02" in said and "SEED: 3 -> 4" in said
    assert trainer.start_iter == 2
    trainer.folder.after_train()


def test_nothing_changed_is_no_warning(base, caplog):
    train(base)
    with caplog.at_level(logging.WARNING):
        trainer = train(base, resume=True, SOLVER__MAX_ITER=3, DATALOADER__NUM_WORKERS=1)
    assert warnings(caplog) == [] and trainer.start_iter == 2
    with open(os.path.join(base.OUTPUT_DIR, "runs.jsonl")) as f:
        first, second = map(json.loads, f)
    assert first["run"] == second["run"]


def test_another_file_in_the_teachers_place_is_named(base, tmp_path, caplog):
    files = save_detector(tiny_config(width=6, fpn=24), tmp_path / "teacher", seed=1)
    base.MODEL.TEACHER.CONFIG_FILE, base.MODEL.TEACHER.WEIGHTS = files
    train(base)
    save_detector(tiny_config(width=6, fpn=24), tmp_path / "teacher", seed=2)
    with caplog.at_level(logging.WARNING):
        start(base, resume=True).folder.after_train()
    (said,) = warnings(caplog)
    assert f"the teacher's file: '{files[1]}'" in said


def test_another_config_of_the_teacher_is_named(base, tmp_path, caplog):
    """The file of weights is the same."""
    cfg = tiny_config(width=6, fpn=24)
    files = save_detector(cfg, tmp_path / "teacher", seed=1)
    base.MODEL.TEACHER.CONFIG_FILE, base.MODEL.TEACHER.WEIGHTS = files
    train(base)
    cfg.MODEL.PIXEL_MEAN = [1.0, 2.0, 3.0]
    (tmp_path / "teacher" / "config.yaml").write_text(student_config(cfg).dump())
    with caplog.at_level(logging.WARNING):
        start(base, resume=True).folder.after_train()
    (said,) = warnings(caplog)
    assert "the teacher's MODEL.PIXEL_MEAN: [103.53, 116.28, 123.675] -> [1.0, 2.0, 3.0]" in said
    assert "the teacher's MODEL.WEIGHTS" not in said


def test_what_goes_by_the_length_of_the_run_is_named(base, caplog):
    """A cosine schedule goes by the length; steps at iterations of their own do not: see above."""
    base.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    train(base)
    with caplog.at_level(logging.WARNING):
        trainer = start(base, resume=True, SOLVER__MAX_ITER=3)
    (said,) = warnings(caplog)
    assert "SOLVER.MAX_ITER: 2 -> 3 (from here on as if it had been so from the start: " in said
    assert "SOLVER.LR_SCHEDULER_NAME WarmupCosineLR)" in said and "BALANCE" not in said
    assert trainer.start_iter == 2
    trainer.folder.after_train()


@pytest.mark.parametrize(
    "balance,yaml,lazy",
    [
        (None, "", "lr_multiplier"),
        ({"until": 1.0}, "", "lr_multiplier"),
        (
            {},
            "MODEL.DISTILLER.BALANCE.UNTIL, the teacher stops at iteration 3",
            "lr_multiplier; model.balance.until, the teacher stops at iteration 3",
        ),
        (
            {"until": 1.0, "decay": "cosine"},
            "MODEL.DISTILLER.BALANCE.DECAY cosine",
            "lr_multiplier; model.balance.decay cosine",
        ),
    ],
)
def test_what_goes_by_the_length_is_the_built_model_s(balance, yaml, lazy, base, tmp_path):
    """A preset may have switched the balance off, whatever the config says of it."""
    model = Balanced(balance if balance is None else GradientBalance(max_iter=8, **balance))
    lazy_cfg = lazy_config(tmp_path)
    for cfg, key, words in ((base, "SOLVER.MAX_ITER", yaml), (lazy_cfg, "train.max_iter", lazy)):
        notes = describe(cfg).facts(model, seed=0).notes
        expected = f" (from here on as if it had been so from the start: {words})"
        assert notes == ({key: expected} if words else {})


@pytest.mark.parametrize(
    "change,expected",
    [
        ({"MODEL__RETINANET__NUM_CLASSES": 7}, "MODEL.RETINANET.NUM_CLASSES: 6 -> 7"),
        ({"MODEL__FPN__OUT_CHANNELS": 32}, "MODEL.FPN.OUT_CHANNELS: 16 -> 32"),
        ({"MODEL__DISTILLER__NAME": "MGD"}, "MODEL.DISTILLER.NAME"),
        ({"MODEL__BACKBONE__FREEZE_AT": 3}, "MODEL.BACKBONE.FREEZE_AT"),
    ],
)
def test_what_cannot_go_on_is_an_error_before_the_optimizer_is_touched(base, change, expected):
    train(base)
    cfg = base.clone()
    for key, value in change.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    trainer = SKDTrainer(cfg)
    with pytest.raises(CheckpointError, match="Changed since that run started:") as error:
        trainer.resume_or_load(resume=True)
    assert expected in str(error.value) and "MODEL.WEIGHTS" in str(error.value)
    assert trainer.optimizer.state_dict()["state"] == {} and trainer.start_iter == 0
    with open(os.path.join(base.OUTPUT_DIR, "runs.jsonl")) as f:
        assert len(f.readlines()) == 1  # the next --resume is compared with what ran
    trainer.folder.after_train()


def test_a_new_run_in_a_used_folder_leaves_no_trap(base, caplog):
    """It is killed before its first checkpoint; the next --resume is not the old run."""
    old = train(base, SEED=1)
    with caplog.at_level(logging.WARNING):
        killed = start(base, SEED=2)
    assert "has the checkpoints of another run" in warnings(caplog)[0]
    killed.folder.after_train()
    again = train(base, resume=True, SEED=2)
    assert again.start_iter == 0
    before, now = old.model.state_dict(), again.model.state_dict()
    assert not all(torch.equal(before[k], now[k]) for k in before)


@pytest.mark.parametrize("lost", ["damaged", "missing"])
def test_falling_back_takes_no_other_runs_checkpoint(lost, tmp_path):
    for run_id, iterations in (("old", (5,)), ("new", (1, 2))):
        saver = SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
        saver.run_id = run_id
        for iteration in iterations:
            saver.save(f"model_{iteration:07d}", iteration=iteration)
    os.utime(tmp_path / "model_0000001.pth", (1, 1))  # older than the other run's
    last = tmp_path / "model_0000002.pth"
    last.write_bytes(b"") if lost == "damaged" else last.unlink()
    (tmp_path / "runs.jsonl").write_text('{"run": "old"}\n{"run": "new"}\n{"half a li')
    reader = SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    assert reader.resume_or_load("", resume=True)["iteration"] == 1


def test_falling_back_passes_over_weights_only(tmp_path):
    """Falling back passes over files like model_ema.pth, which a run writes last."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    saver = SafeCheckpointer(model, str(tmp_path), optimizer=optimizer)
    for iteration in (1, 2):
        saver.save(f"model_{iteration:07d}", iteration=iteration)
    torch.save({"model": model.state_dict()}, tmp_path / "model_ema.pth")
    (tmp_path / "model_0000002.pth").write_bytes(b"")
    assert saver.resume_or_load("", resume=True)["iteration"] == 1


HOLD = """
import sys
from skd.runtime import lock
print(lock.acquire(sys.argv[1]), flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(folder):
    """Another process has the folder, until it is killed; its id."""
    other = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLD, folder], text=True,
        env=environment(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout.readline() == "None\n"
    try:
        yield other.pid
    finally:
        other.kill()
        other.wait()


def test_two_runs_in_one_folder_are_refused_and_a_killed_one_is_not_in_the_way(base):
    os.makedirs(base.OUTPUT_DIR)
    with holding(base.OUTPUT_DIR) as pid:
        with pytest.raises(FolderInUseError, match=f"another run is using it .process {pid} on"):
            start(base)
        assert "runs.jsonl" not in os.listdir(base.OUTPUT_DIR)
    train(base)


def test_a_folder_that_cannot_be_locked_is_a_warning(base, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    with caplog.at_level(logging.WARNING):
        train(base)
    assert "cannot be locked ([Errno 37] No locks available)" in warnings(caplog)[0]


@pytest.mark.parametrize("folder", ["", "/dev/null", "/dev/null/out", "a\0b", "a\ud800b"])
def test_a_folder_that_cannot_be_made_is_told_by_its_key(folder):
    with pytest.raises(OSError, match="^output_dir is '.*, which cannot be made: "):
        open_folder(folder)


def test_a_refused_run_has_written_nothing(base, tmp_path):
    """The run is refused before the log is set up: what is in the folder is the other run's."""
    from train_net import argument_parser, setup

    os.makedirs(base.OUTPUT_DIR)
    config = tmp_path / "config.yaml"
    config.write_text(base.dump())
    with holding(base.OUTPUT_DIR), pytest.raises(FolderInUseError):
        setup(argument_parser().parse_args(["--config-file", str(config)]))
    assert os.listdir(base.OUTPUT_DIR) == ["run.lock"]


def test_an_evaluation_leaves_the_runs_config(base, tmp_path):
    from train_net import argument_parser, setup

    config = tmp_path / "out" / "config.yaml"
    config.parent.mkdir()
    config.write_text(base.dump())
    setup(argument_parser().parse_args(["--config-file", str(config), "--eval-only"]))
    assert config.read_text() == base.dump()


def test_errors_say_what_the_user_calls_a_setting(tmp_path):
    reader = SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path), trainer=torch.nn.Linear(1, 1))
    SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).save("model_final")
    words = {"weights": "train.init_checkpoint", "output_dir": "train.output_dir"}
    for said, weights in ((words, words["weights"]), ({}, "weights")):
        with named_by(said), pytest.raises(CheckpointError, match=f"its weights: {weights} "):
            reader.resume_or_load("", resume=True)


def test_an_evaluation_beside_a_training_writes_to_a_folder_of_its_own(base, tmp_path):
    from train_net import argument_parser, setup

    out, config = base.OUTPUT_DIR, tmp_path / "config.yaml"
    config.write_text(base.dump())
    args = ["--config-file", str(config), "--eval-only"]
    os.makedirs(out)
    with open(os.path.join(out, "last_checkpoint"), "w") as f:
        f.write("model_0000001.pth")
    with holding(out) as pid:
        before = set(os.listdir(out))
        parsed = argument_parser().parse_args([*args, "--resume"])
        cfg = setup(parsed)
        (own,) = set(os.listdir(out)) - before
        assert cfg.OUTPUT_DIR == os.path.join(out, own) and not parsed.resume
        assert cfg.MODEL.WEIGHTS == os.path.join(out, "model_0000001.pth")
        with open(os.path.join(cfg.OUTPUT_DIR, "log.txt")) as f:
            assert f"A training is using '{out}' (process {pid} on " in f.read()
        base.MODEL.WEIGHTS = "mine.pth"
        assert beside_training(base, resume=False) and base.MODEL.WEIGHTS == "mine.pth"
    assert setup(argument_parser().parse_args(args)).OUTPUT_DIR == out


@pytest.mark.parametrize("before", [True, False])
def test_distilling_goes_on_as_distilling_only(base, before):
    configs = base, yaml_config.student_config(base, keep_settings=True)
    first, second = configs if before else configs[::-1]
    train(first)
    trainer = SKDTrainer(second)
    with pytest.raises(CheckpointError, match=f"was with{'' if before else 'out'} a teacher, and"):
        trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    trainer.folder.after_train()


def test_without_last_checkpoint_the_newest_of_the_run_is_taken(base, caplog):
    train(base)
    os.remove(os.path.join(base.OUTPUT_DIR, "last_checkpoint"))
    trainer = start(base, resume=True, SOLVER__MAX_ITER=3)
    assert trainer.start_iter == 2
    trainer.folder.after_train()
    os.remove(os.path.join(base.OUTPUT_DIR, "model_final.pth"))
    with caplog.at_level(logging.WARNING):
        trainer = start(base, resume=True)
    assert trainer.start_iter == 0 and "Nothing to resume from" in warnings(caplog)[0]
    trainer.folder.after_train()


@pytest.mark.parametrize("lost", [False, True])
def test_without_a_record_to_compare_with_a_word_is_said(lost, tmp_path, caplog):
    def folder():
        made = RunFolder(SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)), RunFacts([], 1))
        made.trainer = SimpleNamespace(iter=1)
        return made

    first = folder()
    first.resume_or_load("", resume=False)
    first.checkpointer.save("model_0000001", iteration=1)
    first.after_train()
    if lost:
        (tmp_path / "runs.jsonl").unlink()
    with caplog.at_level(logging.WARNING):
        second = folder()
        second.resume_or_load("", resume=True)
        second.after_train()
    assert ("has no line of the run to resume" in caplog.text) == lost


def test_a_restart_resumes_its_own_launchs_run_only(base, monkeypatch):
    train(base)
    monkeypatch.setenv(record.LAUNCH_VARIABLE, "this")
    assert start(base).start_iter == 0  # the folder's run is of another launch
    train(base)
    again = start(base, SOLVER__MAX_ITER=3)
    assert again.start_iter == 2
    again.folder.after_train()


def test_a_change_is_told_from_the_record_in_force(base, caplog):
    """A start with other values that was killed before its first checkpoint changed nothing."""
    train(base)
    start(base, resume=True, SOLVER__BASE_LR=0.02).folder.after_train()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        start(base, resume=True).folder.after_train()
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "line",
    [
        '{"config": 5}',
        '{"datasets": null}',
        '{"datasets": {"a": null}}',
        '{"files": {"a": {"sha256": 5}}}',
        "[" * 100_000,
        "[]",
    ],
)
def test_a_line_that_is_no_record_is_ignored_with_a_warning(tmp_path, caplog, line):
    (tmp_path / "runs.jsonl").write_text(f'{{"run": "a"}}\n{line}\n{{"half')
    with caplog.at_level(logging.WARNING):
        assert record.read_records(str(tmp_path)) == [{"run": "a"}]
    assert caplog.text.count("are ignored: 2.") == 1


def test_a_record_is_not_lost_behind_half_a_line(tmp_path):
    """A run finds its checkpoints, though a killed one left half a line before its record."""
    (tmp_path / "runs.jsonl").write_text('{"run": "old"}\n{"half')
    for run_id in ("new", "newer"):
        record.append_record(str(tmp_path), {"run": run_id})
    assert [r["run"] for r in record.read_records(str(tmp_path))] == ["old", "new", "newer"]


def test_half_written_files_of_killed_runs_go(base):
    os.makedirs(base.OUTPUT_DIR)
    ours = ("model_0000001.pth.123.tmp", "my-prefix_0000001.pth.123.tmp", "last_checkpoint.9.tmp")
    for name in (*ours, "mine.tmp"):
        with open(os.path.join(base.OUTPUT_DIR, name), "w"):
            pass
    train(base)
    names = os.listdir(base.OUTPUT_DIR)
    assert [n for n in names if n.endswith(".tmp")] == ["mine.tmp"]


def _unreadable(folder):
    """Folders so deep that no path leads to the last, which nobody, not even root, can list."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("x" * 200, dir_fd=here)
        below = os.open("x" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_the_record_never_stops_a_run(base, shapes, tmp_path, caplog, monkeypatch):
    """Links to nowhere for the record itself, and among the images."""
    from detectron2.data import MetadataCatalog

    os.makedirs(base.OUTPUT_DIR)
    os.symlink(tmp_path / "gone" / "runs.jsonl", os.path.join(base.OUTPUT_DIR, "runs.jsonl"))
    with caplog.at_level(logging.WARNING):
        train(base)
    assert "This run has no line in" in caplog.text
    images = tmp_path / "images"
    images.mkdir()
    os.symlink(tmp_path / "gone.jpg", images / "gone.jpg")
    MetadataCatalog.get("tiny_linked").set(image_root=str(images))
    assert len(record.fingerprint("tiny_linked")["images"]) == 64
    _unreadable(str(images))
    assert len(record.fingerprint("tiny_linked")["images"]) == 64
    monkeypatch.setattr(record, "SECONDS_FOR_IMAGES", 0.0)  # a network folder of minutes
    assert record.fingerprint("tiny_linked") == {}
    monkeypatch.setattr(record, "fingerprint", lambda name: 1 / 0)
    described = record.describe_run(record.RunFacts(["tiny_linked"], seed=0))
    assert described["datasets"] == {
        "tiny_linked": {"unknown": "ZeroDivisionError: division by zero"}
    }
