"""A run from a YAML config, made by the methods of a DefaultTrainer."""

import inspect
from functools import partial
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from ..config import is_distilling, run_settings, student_config
from ..config.keys import DISTILS
from ..config.naming import YAML
from ..config.yaml_config import check_teacher
from ..modeling.build_detector import DetectorSource, build_detector
from .precise_bn import PreciseBN
from .run import Run
from .teacher_quality import TeacherEvaluation, teacher_evaluation


def yaml_run(cfg: CfgNode, trainer: Any) -> Run:
    """
    Args:
        cfg: of the run. With ``SOLVER.REFERENCE_WORLD_SIZE`` it is scaled to the processes.
        trainer: an SKDTrainer, or the class: its ``build_*`` methods and ``test`` are used.

    Raises:
        ValueError: test-time augmentation for a model that has none, or a teacher without a
            config that distils, or the reverse.
    """
    if not getattr(trainer, DISTILS, False):  # one of skd.distilling, which has a teacher itself
        check_teacher(cfg)
    _check_test_sizes(cfg)
    cfg = _scaled(cfg)
    augmented = None
    if cfg.TEST.AUG.ENABLED:
        _check_augmentation(cfg, trainer)
        augmented = partial(trainer.test_with_TTA, cfg)
    return Run(
        **run_settings.read(cfg),
        cfg=cfg,
        build_model=lambda: trainer.build_model(cfg),
        build_optimizer=lambda model: trainer.build_optimizer(cfg, model),
        build_scheduler=lambda optimizer: trainer.build_lr_scheduler(cfg, optimizer),
        build_train_loader=lambda: trainer.build_train_loader(cfg),
        evaluate=lambda model: trainer.test(cfg, model),
        evaluate_augmented=augmented,
        teacher=_teacher_evaluation(cfg, trainer),
        precise_bn=lambda model: _precise_bn(cfg, trainer, model),
        nested=True,
        ddp={"broadcast_buffers": False},
    )


def _scaled(cfg: CfgNode) -> CfgNode:
    """``SOLVER.REFERENCE_WORLD_SIZE``, as in Detectron2; images without labels by the same rule."""
    reference, world = cfg.SOLVER.REFERENCE_WORLD_SIZE, comm.get_world_size()
    scaled = DefaultTrainer.auto_scale_workers(cfg, world)
    if reference and cfg.DATASETS.UNLABELLED_PER_BATCH:
        if cfg.DATASETS.UNLABELLED_PER_BATCH % reference:
            raise ValueError(
                f"DATASETS.UNLABELLED_PER_BATCH is {cfg.DATASETS.UNLABELLED_PER_BATCH}; it must be "
                f"a multiple of SOLVER.REFERENCE_WORLD_SIZE, {reference}, as SOLVER.IMS_PER_BATCH "
                "is, or 0 for as many as that."
            )
        scaled = scaled.clone()
        scaled.defrost()
        scaled.DATASETS.UNLABELLED_PER_BATCH = (
            cfg.DATASETS.UNLABELLED_PER_BATCH // reference * world
        )
        scaled.freeze()
    return scaled


def _teacher_evaluation(cfg: CfgNode, trainer: Any) -> Optional[TeacherEvaluation]:
    if not is_distilling(cfg):
        return None
    sets = cfg.DATASETS.TEST
    return teacher_evaluation(
        cfg.MODEL.TEACHER.EVALUATE,
        sets,
        run_settings.keys_of(YAML),
        build=partial(build_detector, DetectorSource.of_config(cfg)),
        build_loader=lambda: trainer.build_test_loader(cfg, sets[0]),
        image_format=cfg.INPUT.FORMAT,
    )


def _precise_bn(cfg: CfgNode, trainer: Any, model: nn.Module) -> Optional[PreciseBN]:
    if not (cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(model)):
        return None
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0  # as DefaultTrainer: a second loader, which saves its memory
    loader = trainer.build_train_loader(cfg)
    return PreciseBN(cfg.TEST.EVAL_PERIOD, model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)


def _check_test_sizes(cfg: CfgNode) -> None:
    """Raise ValueError for image sizes that only the evaluation would stop at."""
    least, most = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if least < 0:
        raise ValueError(
            f"INPUT.MIN_SIZE_TEST is {least}; it must be a size, in pixels, or 0 for images as "
            "they are."
        )
    if least and most < 1:
        raise ValueError(f"INPUT.MAX_SIZE_TEST is {most}; it must be a size, in pixels.")


def _check_augmentation(cfg: CfgNode, trainer: Any) -> None:
    """What GeneralizedRCNNWithTTA asserts, before training instead of after."""
    name = student_config(cfg).MODEL.META_ARCHITECTURE
    kind = META_ARCH_REGISTRY.get(name)
    why = ""
    if not (inspect.isclass(kind) and issubclass(kind, GeneralizedRCNN)):
        why = f"MODEL.META_ARCHITECTURE is {name}, and Detectron2 augments R-CNNs only"
    elif issubclass(kind, PanopticFPN):
        why = "Detectron2 does not augment the semantic segmentation of PanopticFPN"
    elif cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS:
        why = "Detectron2 does not augment with MODEL.KEYPOINT_ON or MODEL.LOAD_PROPOSALS"
    elif "output_folder" not in inspect.signature(trainer.build_evaluator).parameters:
        why = "build_evaluator of the trainer takes no output_folder, as Detectron2's script has it"
    if why:
        raise ValueError(f"TEST.AUG.ENABLED is True, but {why}: set it False.")
    sizes, most = cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE
    if not sizes or min(sizes) < 1:
        raise ValueError(f"TEST.AUG.MIN_SIZES is {sizes}; it must be at least one size, in pixels.")
    if most < 1:
        raise ValueError(f"TEST.AUG.MAX_SIZE is {most}; it must be a size, in pixels.")
