"""A Trainer of somebody else's, whose model distils, and which does not know of it."""

import inspect
import logging
import os
from typing import Any, Sequence, Type, Union

import torch
from detectron2.config import CfgNode
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils import comm
from torch import nn

from ..config import (
    add_skd_config,
    check_kind_of_teacher,
    distill,
    form_of,
    is_distilling,
    run_settings,
)
from ..config.keys import DISTILS, NODES, own_nodes
from ..config.naming import YAML, written_as
from ..modeling.meta_arch import DistillRCNN
from ..modeling.parts import distilling_parts
from .trainer import SKDTrainer

logger = logging.getLogger(__name__)
Teacher = Union[str, os.PathLike, nn.Module]


def distilling(
    trainer: Type[TrainerBase],
    teacher: Teacher,
    weights: str = "",
    opts: Sequence[Any] = (),
    projects: Sequence[str] = (),
) -> Type[TrainerBase]:
    """
    A subclass of a Trainer that differs in one thing: what its ``build_model(cfg)`` returns
    distils. The config stays the Trainer's own, so what it makes of it (mappers, augmentations,
    evaluators, optimizers) stays the same, and so do checkpoints, but for keys that start with
    ``distiller.``. This project's settings of a run in that config, such as ``SOLVER.EMA_DECAY``,
    have no effect on a Trainer that is no :class:`SKDTrainer`, which is one warning.

    Args:
        trainer: a ``DefaultTrainer`` or another class with a method ``build_model(cfg)``, of the
            class or of its objects, and which calls that.
        teacher: see ``MODEL.TEACHER.CONFIG_FILE``; or a detector that has its weights, which is
            changed; or a :class:`FrozenTeacher`.
        weights: see ``MODEL.TEACHER.WEIGHTS``.
        opts: further keys of this project, ``["MODEL.DISTILLER.NAME", "FGD", ...]``. The Trainer's
            config may have them too, if :func:`add_skd_config` has declared them.
        projects: see ``MODEL.TEACHER.PROJECTS``.

    Raises:
        TypeError: ``trainer`` is not a class, or ``teacher`` not a teacher.
        ValueError: ``opts`` are no pairs, or have a key of the run, which is the Trainer's own;
            when the Trainer is made: it builds its model in another way, or its config distils
            already.

    Examples:
    ::
        Trainer = skd.distilling(Trainer, teacher="COCO-Detection/retinanet_R_101_FPN_3x.yaml")
        trainer = Trainer(cfg)  # the project's own config
    """

    if not inspect.isclass(trainer):
        raise TypeError(
            f"skd.distilling() takes a Trainer's class, not a {type(trainer).__name__}: "
            "Trainer = skd.distilling(Trainer, teacher=...), then Trainer(cfg)."
        )
    check_kind_of_teacher(teacher)
    _check_keys(opts)
    if not isinstance(teacher, nn.Module):
        teacher = os.fspath(teacher)

    class Distilling(trainer):
        _skd_built = 0  # models, by all trainers of the class: some build before they are an object

        def __init__(self, *args: Any, **kwargs: Any):
            before = type(self)._skd_built
            super().__init__(*args, **kwargs)
            if type(self)._skd_built == before:
                raise ValueError(
                    f"{trainer.__name__} makes its model without its build_model(cfg), so that it "
                    "would not distil. Let DistillRCNN take the student there: see 'A plain "
                    "PyTorch loop' in docs/plugging_in.md."
                )

    def build_model(self: Any, cfg: CfgNode, *args: Any, **kwargs: Any) -> nn.Module:
        settings = _settings(cfg, teacher, weights, opts, projects)
        _warn_of_idle(cfg, trainer)
        student = super(Distilling, self).build_model(cfg, *args, **kwargs)
        built = None if isinstance(teacher, str) else teacher
        with written_as(YAML):  # what `opts` and the config have
            model = DistillRCNN(student=student, **distilling_parts(settings, built))
        (self if isinstance(self, type) else type(self))._skd_built += 1
        return model.to(torch.device(cfg.MODEL.DEVICE))

    of_objects = inspect.isfunction(inspect.getattr_static(trainer, "build_model", None))
    setattr(Distilling, DISTILS, True)
    Distilling.build_model = build_model if of_objects else classmethod(build_model)
    Distilling.__name__ = Distilling.__qualname__ = f"Distilling{trainer.__name__}"
    return Distilling


def _check_keys(opts: Sequence[Any]) -> None:
    """Raise ValueError for keys of a run: these are the Trainer's affair, which never sees them."""
    if not isinstance(opts, (list, tuple)) or len(opts) % 2:
        raise ValueError(f"opts is {opts!r:.200}; it must be a list of KEY, VALUE, ...")
    ours, of_runs = tuple(f"MODEL.{n}." for n in NODES), {s.yaml for s in run_settings.settings()}
    idle = [str(key) for key in opts[::2] if not str(key).startswith(ours) or key in of_runs]
    if idle:
        raise ValueError(
            f"opts has {', '.join(idle)}, which would have no effect; it must be keys of "
            f"{', '.join(f'MODEL.{node}' for node in NODES)}. Detectron2's own go into the "
            "Trainer's config; SOLVER.BEST_METRIC and this project's other settings of a run are "
            "SKDTrainer's (train_net.py) alone."
        )


def _warn_of_idle(cfg: CfgNode, trainer: Type[TrainerBase]) -> None:
    """
    No error: a project that declares such a key after :func:`add_skd_config` has its own in the
    place of ours, and nothing tells the two apart.
    """
    changed = run_settings.changed(cfg) if own_nodes(cfg) else {}  # else these keys are not ours
    advice = (
        "They are settings of this project's train_net.py and SKDTrainer: leave them out, or "
        "derive the Trainer from SKDTrainer. (Where your project reads a key of that name itself, "
        "all is well.)"
    )
    if issubclass(trainer, SKDTrainer):
        changed = {key: value for key, value in changed.items() if key.startswith("MODEL.TEACHER.")}
        advice = "It needs a teacher that the config names: skd.distill(), not skd.distilling()."
    idle = ", ".join(f"{key} {value!r:.80}" for key, value in changed.items())
    if idle and comm.is_main_process():
        logger.warning(f"No effect in {trainer.__name__}: {idle}. {advice}")


def _settings(
    cfg: CfgNode, teacher: Teacher, weights: str, opts: Sequence[Any], projects: Sequence[str]
) -> CfgNode:
    """The config with this project's keys in place of others of the same names."""
    if is_distilling(cfg):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, but skd.distilling() takes "
            "the student's own config: leave skd.distill() out."
        )
    settings, own = cfg.clone(), own_nodes(cfg)
    settings.defrost()
    run_settings.remove_added(settings)
    for node in NODES:
        settings.MODEL.pop(node, None)
    add_skd_config(settings)
    for node in own:
        settings.MODEL[node] = cfg.MODEL[node].clone()
    settings.defrost()
    distill(settings, teacher if isinstance(teacher, str) else "", weights, projects)
    return form_of(settings).override(settings, opts)  # the user's word
