"""Runs with images without labels: from either form of config, resumed, in parts, and refused."""

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from skd import distill, student_config
from skd.config import form_of, run_settings
from skd.engine import SKDTrainer, describe
from skd.engine.unlabelled import find_unlabelled
from skd.engine.yaml_run import yaml_run
from skd.modeling.unlabelled import TERM
from skd.runtime.record import changes, describe_run
from skd.train_net import argument_parser
from tests.helpers import differing, distilling, lazy_config, tiny_config, train_until


@pytest.fixture
def folder(tmp_path):
    """Four images, one of them broken."""
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((96, 64 + 64 * i), 60).convert("RGB").save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return str(folder)


@pytest.fixture
def config(teacher_files, shapes, folder):
    cfg = distilling(tiny_config(SOLVER__CHECKPOINT_PERIOD=2), teacher_files, balance=True)
    cfg.DATASETS.TEST, cfg.DATASETS.UNLABELLED, cfg.SEED = (), (folder,), 3
    return cfg


def train(cfg, out, until=None, resume=False, **changes):
    """The trained state."""
    cfg = cfg.clone()
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return train_until(cfg, out, until, resume).model.state_dict()


def written(out):
    with open(f"{out}/metrics.json") as f:
        return [json.loads(line) for line in f]


def test_a_run_resumes_bit_by_bit_and_leaves_broken_images_out(config, tmp_path, caplog):
    config.MODEL.DISTILLER.BALANCE.UNTIL = 0.75
    with caplog.at_level(logging.INFO):
        expected = train(config, tmp_path / "whole")
    assert "Images without labels: none from iteration 3 on." in caplog.messages
    said = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert len(said) == 1 and "broken.jpg" in said[0] and "DATASETS.UNLABELLED_SKIP" in said[0]
    assert all(row[TERM] > 0 for row in written(tmp_path / "whole") if row["iteration"] == 3)
    train(config, tmp_path / "parts", until=2)
    resumed = train(config, tmp_path / "parts", resume=True, DATALOADER__NUM_WORKERS=1)
    assert not differing(expected, resumed)


def test_a_resume_behind_the_last_of_them_shows_their_loss_as_0(config, tmp_path):
    config.MODEL.DISTILLER.BALANCE.UNTIL = 0.5
    train(config, tmp_path, until=2)
    train(config, tmp_path, resume=True)
    assert written(tmp_path)[-1][TERM] == 0


def test_they_scale_with_the_reference_world_size(config, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    config.SOLVER.REFERENCE_WORLD_SIZE, config.SOLVER.IMS_PER_BATCH = 8, 16
    config.DATASETS.UNLABELLED_PER_BATCH = 32
    cfg = yaml_run(config, SKDTrainer).cfg
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.DATASETS.UNLABELLED_PER_BATCH) == (4, 8)


def test_what_does_not_scale_is_refused(config):
    config.SOLVER.REFERENCE_WORLD_SIZE, config.SOLVER.IMS_PER_BATCH = 8, 16
    config.DATASETS.UNLABELLED_PER_BATCH = 4  # of one process it would be none: as many as labelled
    with pytest.raises(ValueError, match="UNLABELLED_PER_BATCH is 4; it must be a multiple of SOL"):
        yaml_run(config, SKDTrainer)


def test_with_weight_zero_it_is_the_training_without_them(config, tmp_path):
    """Order, augmentation and random numbers are as without them, in micro-batches too."""
    more = {"SOLVER__ACCUMULATE": 2, "SOLVER__IMS_PER_BATCH": 4}
    none = train(config, tmp_path / "0", MODEL__DISTILLER__UNLABELLED_WEIGHT=0.0, **more)
    baseline = train(config, tmp_path / "1", DATASETS__UNLABELLED=(), **more)
    own = {k: v for k, v in baseline.items() if not k.startswith("distiller.levels")}
    assert own and all(torch.equal(none[k], v) for k, v in own.items())


def test_from_a_lazy_config(teacher_files, shapes, folder, tmp_path):
    cfg = lazy_config(tmp_path, "train.max_iter=1")
    distill(cfg, *teacher_files)
    del cfg.dataloader["evaluator"]
    cfg.dataloader.unlabelled, cfg.dataloader.unlabelled_per_batch = [folder], 3
    cfg.model.unlabelled_weight = 2.0
    trainer = SKDTrainer(cfg)
    assert trainer.data_loader.unlabelled.images_per_batch == 3
    assert trainer.model._skd.unlabelled_weight == 2
    trainer.train()
    assert TERM in trainer.storage.latest()
    assert not [k for k in student_config(cfg).dataloader if "unlabelled" in k]


def test_the_command_line_names_folders_besides_the_configs(config, folder):
    args = argument_parser().parse_args(["--unlabelled", "a", "--unlabelled", "b"])
    run_settings.extend(config, "unlabelled", args.unlabelled)
    assert config.DATASETS.UNLABELLED == (folder, "a", "b")
    cfg = OmegaConf.create({"dataloader": {"train": 1}})
    run_settings.extend(cfg, "unlabelled", args.unlabelled)
    assert cfg.dataloader.unlabelled == ["a", "b"]
    assert "UNLABELLED" not in student_config(config).dump()


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("DATASETS.UNLABELLED", ("nowhere",), "names 'nowhere', which is neither a folder nor"),
        ("DATASETS.UNLABELLED_PER_BATCH", -1, "is -1; it must be a whole number, 0 or above"),
        ("DATASETS.UNLABELLED_SKIP", -2, "is -2; it must be a whole number"),
        ("SOLVER.ACCUMULATE", 2, r"UNLABELLED_PER_BATCH is 3; it must be a multiple of 2"),
        ("MODEL.DISTILLER.NAME", "FGD", "^FGD cannot learn .*DATASETS.UNLABELLED"),
    ],
)
def test_what_cannot_be_is_said_before_training(config, tmp_path, key, value, message):
    config.DATASETS.UNLABELLED_PER_BATCH, config.OUTPUT_DIR = 3, str(tmp_path / "out")
    config.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        SKDTrainer(config)


def test_a_test_set_among_them_is_a_warning(config, caplog):
    config.DATASETS.UNLABELLED = config.DATASETS.TEST = ("tiny_val",)
    find_unlabelled(describe(config))
    assert "DATASETS.UNLABELLED names the test set 'tiny_val': the student sees" in caplog.text


def test_test_images_in_a_folder_are_a_warning(config, tmp_path, caplog):
    """Also where it is linked to, and of a part of them."""
    images = Path(MetadataCatalog.get("tiny_val").image_root)
    config.DATASETS.TEST = ("tiny_val",)
    find_unlabelled(describe(config))
    assert "test set" not in caplog.text  # the folder's images are others
    (tmp_path / "link").mkdir()
    for image in sorted(images.iterdir())[:3]:
        (tmp_path / "link" / image.name).symlink_to(image)
    config.DATASETS.UNLABELLED = (str(tmp_path / "link"),)
    find_unlabelled(describe(config))
    assert "UNLABELLED has 3 images of the test set 'tiny_val', as '" in caplog.text


def test_a_resume_says_that_others_are_there_now(config, folder):
    facts = describe(config).facts(nn.Module(), seed=0)
    before = describe_run(facts)
    (Path(folder) / "another.png").write_bytes(b"")
    said = changes(before, describe_run(facts), lambda key: True, {})
    assert said == [f"the images of dataset '{folder}': other content under the name"]


def test_fewer_images_than_processes_are_refused(config, monkeypatch):
    run = describe(config)
    monkeypatch.setattr("skd.engine.unlabelled.comm.get_world_size", lambda: 5)
    with pytest.raises(ValueError, match="has 4 images, fewer than there are processes, 5"):
        find_unlabelled(run)


def test_without_a_teacher_nobody_learns_from_them(shapes, folder, tmp_path):
    cfg = lazy_config(tmp_path)
    cfg.dataloader.unlabelled = [folder]
    for form in (tiny_config(DATASETS__UNLABELLED=(folder,), OUTPUT_DIR=str(tmp_path)), cfg):
        with pytest.raises(ValueError, match="(?i)unlabelled is .*, and the model does not distil"):
            SKDTrainer(form)


def test_an_evaluation_does_not_ask_for_them(config):
    config.DATASETS.UNLABELLED, config.DATASETS.TEST = ("nowhere",), ("tiny_val",)
    describe(form_of(config).student_config(config, keep_settings=True))
