"""A Trainer of another project's, made to distil by one line: it sees its own config."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model

from skd import DistillRCNN, FrozenTeacher, build_teacher, distill, distilling, student_config
from skd.engine import SKDTrainer
from tests.helpers import tiny_config


class Branching(DefaultTrainer):
    """A trainer as many projects have it: what it does hangs on META_ARCHITECTURE."""

    seen = []

    @classmethod
    def build_train_loader(cls, cfg):
        cls.seen.append(cfg.MODEL.META_ARCHITECTURE)
        return super().build_train_loader(cfg)

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        model.from_branching = cfg.MODEL.META_ARCHITECTURE
        return model


@pytest.fixture
def plain(tmp_path, shapes):
    cfg = student_config(tiny_config(SOLVER__MAX_ITER=2))
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def test_the_trainer_sees_its_own_config(plain, teacher_files):
    before, Branching.seen = plain.dump(), []
    opts = ["MODEL.DISTILLER.NAME", "PKD", "MODEL.DISTILLER.LEVELS", ["p3"]]
    trainer = distilling(Branching, *teacher_files, opts=opts)(plain)
    assert isinstance(trainer, Branching) and Branching.seen == ["GeneralizedRCNN"]
    assert trainer.cfg.dump() == plain.dump() == before
    assert trainer.model.from_branching == "GeneralizedRCNN"
    assert isinstance(trainer.model, DistillRCNN) and isinstance(trainer.model, GeneralizedRCNN)
    trainer.train()
    histories = trainer.storage.histories()
    assert histories["loss_distill_pkd"].values()[0][0] > 0
    assert [k for k in histories if k.startswith("distill/pkd_")] == ["distill/pkd_p3"]
    state = torch.load(f"{plain.OUTPUT_DIR}/model_final.pth")["model"]
    result = build_model(plain).load_state_dict(state, strict=False)
    assert not result.missing_keys
    assert all(k.startswith("distiller.") for k in result.unexpected_keys)


def test_keys_of_the_config_and_of_others(plain, teacher_files):
    """A project's own MODEL.TEACHER stays; ours count, where the config has them."""
    plain.MODEL.TEACHER = CfgNode({"MOMENTUM": 0.999})
    plain.SOLVER.EMA_DECAY = "linear"
    model = distilling(Branching, *teacher_files).build_model(plain)
    assert isinstance(model, DistillRCNN) and plain.MODEL.TEACHER.MOMENTUM == 0.999
    assert plain.SOLVER.EMA_DECAY == "linear"
    cfg = tiny_config(MODEL__DISTILLER__NAME="PKD")
    model = distilling(Branching, *teacher_files).build_model(cfg)
    assert type(model.distiller).__name__ == "PKD"
    distill(cfg, *teacher_files)
    with pytest.raises(ValueError, match="leave skd.distill.* out"):
        distilling(Branching, *teacher_files).build_model(cfg)


def test_settings_of_the_run_are_told_to_be_idle(plain, teacher_files, caplog):
    """Another project's Trainer does not read them; an SKDTrainer does, but for the teacher's."""
    cfg = tiny_config(SOLVER__PATIENCE=3, MODEL__TEACHER__EVALUATE=5, MODEL__DISTILLER__NAME="PKD")
    cfg.OUTPUT_DIR, cfg.SOLVER.EMA_DECAY = plain.OUTPUT_DIR, "linear"  # a later project's own
    words = "No effect in %s: %sMODEL.TEACHER.EVALUATE 5. %s"
    distilling(Branching, *teacher_files).build_model(cfg)
    others = "SOLVER.PATIENCE 3, SOLVER.EMA_DECAY 'linear', "
    assert words % ("Branching", others, "They are settings") in caplog.text
    plain.SOLVER.EMA_DECAY = "linear"  # nobody's but the project's
    caplog.clear()
    distilling(Branching, *teacher_files).build_model(plain)
    assert "No effect" not in caplog.text
    cfg.SOLVER.PATIENCE, cfg.SOLVER.EMA_DECAY = 0, 0.5
    trainer = distilling(SKDTrainer, *teacher_files)(cfg)
    assert isinstance(trainer.model, DistillRCNN) and trainer.run.ema_decay == 0.5
    assert words % ("SKDTrainer", "", "It needs a teacher that the config names") in caplog.text
    assert "does not distil" not in caplog.text


@pytest.mark.parametrize("key", ["SOLVER.BEST_METRIC", "SOLVER.BASE_LR", "MODEL.TEACHER.EVALUATE"])
def test_keys_of_the_run_are_refused(key):
    with pytest.raises(ValueError, match=f"opts has {key}, which would have no effect"):
        distilling(Branching, "teacher.yaml", opts=["MODEL.DISTILLER.NAME", "PKD", key, 1])


@pytest.mark.parametrize(
    "arguments,error,words",
    [
        ((object(), "t.yaml"), TypeError, "takes a Trainer's class, not a object"),
        ((Branching, None), TypeError, "The teacher is a NoneType; it must be a config file"),
        ((Branching, "t.yaml", "", {"A": 1}), ValueError, "opts is {'A': 1}; it must be a list of"),
        ((Branching, "t.yaml", "", ["MODEL.DISTILLER.NAME"]), ValueError, "must be a list of KEY"),
    ],
)
def test_arguments_of_another_kind_are_told_at_once(arguments, error, words):
    with pytest.raises(error, match=words):
        distilling(*arguments)


def test_a_build_model_of_objects(plain, teacher_files):
    class OfObjects(Branching):
        def build_model(self, cfg):
            self.built = True
            return build_model(cfg)

    config, weights = map(Path, teacher_files)
    trainer = distilling(OfObjects, config, weights)(plain)
    assert trainer.built and isinstance(trainer.model, DistillRCNN)


def test_a_built_teacher(plain, teacher_files):
    of_file = build_teacher(teacher_files[0], weights=teacher_files[1])
    cfg = get_cfg()
    cfg.merge_from_file(teacher_files[0])
    detector = build_model(cfg)
    detector.load_state_dict(torch.load(teacher_files[1])["model"])
    images = [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}]
    for built in (detector, of_file):
        teacher = distilling(Branching, built).build_model(plain).teacher
        assert isinstance(teacher, FrozenTeacher)
        expected, maps = of_file(images, "BGR"), teacher(images, "BGR")
        for name, x in expected.items():
            assert torch.allclose(maps[name], x)


def test_a_trainer_that_builds_its_model_otherwise_is_refused(plain, teacher_files):
    class Own(DefaultTrainer):
        def __init__(self, cfg):
            self.detector = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)

    trainer = distilling(Own, *teacher_files)
    for _ in range(2):  # a model of its own does not excuse another trainer of the class
        with pytest.raises(ValueError, match="Own makes its model without its build_model"):
            trainer(plain)
        trainer.build_model(plain)
