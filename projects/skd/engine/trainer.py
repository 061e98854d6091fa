"""Detectron2's DefaultTrainer, with evaluators and with several processes on CPUs."""

import logging
import math
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, create_ddp_model
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..evaluation import build_evaluator
from ..runtime.checkpoint import SafeCheckpointer
from ..runtime.loader import build_train_loader
from ..runtime.preemption import PreemptionHook
from ..runtime.record import write_record
from ..runtime.reproducible import ReproducibleSteps, shared_seed
from ..runtime.step import build_trainer, check_accumulate

logger = logging.getLogger(__name__)


def wrap_data_parallel(model: nn.Module, **kwargs) -> nn.Module:
    """``create_ddp_model``, which assumes a GPU, for models on CPUs too."""
    if next(model.parameters()).device.type == "cpu":
        kwargs["device_ids"] = None
    return create_ddp_model(model, **kwargs)


def check_amp(enabled: bool, key: str) -> None:
    """Raise ValueError if mixed precision is asked for where it cannot run."""
    if enabled and not torch.cuda.is_available():
        raise ValueError(
            f"{key} needs a GPU: Detectron2's AMPTrainer runs on CUDA only. Set it False on CPUs."
        )


def check_solver(cfg: CfgNode) -> None:
    """Raise ValueError, naming the key, for values that training would stop at later."""
    solver, world = cfg.SOLVER, comm.get_world_size()

    def whole(value, least):
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    for key, value, good, expected in (
        ("SOLVER.MAX_ITER", solver.MAX_ITER, whole(solver.MAX_ITER, 1), "a whole number above 0"),
        ("SOLVER.BASE_LR", solver.BASE_LR, 0 < solver.BASE_LR < math.inf, "a number above 0"),
        (
            "SOLVER.IMS_PER_BATCH",
            solver.IMS_PER_BATCH,
            whole(solver.IMS_PER_BATCH, 1) and solver.IMS_PER_BATCH % world == 0,
            f"a multiple of the number of processes, {world}",
        ),
        (
            "SOLVER.CHECKPOINT_PERIOD",
            solver.CHECKPOINT_PERIOD,
            whole(solver.CHECKPOINT_PERIOD, 1),
            "a whole number above 0",
        ),
        (
            "TEST.EVAL_PERIOD",
            cfg.TEST.EVAL_PERIOD,
            whole(cfg.TEST.EVAL_PERIOD, 0),
            "a whole number, 0 for never",
        ),
        (
            "SOLVER.SKIP_NON_FINITE",
            solver.get("SKIP_NON_FINITE", 0),
            whole(solver.get("SKIP_NON_FINITE", 0), 0),
            "a whole number, 0 or above",
        ),
        (
            "DATALOADER.NUM_WORKERS",
            cfg.DATALOADER.NUM_WORKERS,
            whole(cfg.DATALOADER.NUM_WORKERS, 0),
            "a whole number, 0 or above",
        ),
        ("DATASETS.TRAIN", cfg.DATASETS.TRAIN, len(cfg.DATASETS.TRAIN) > 0, "a data set's name"),
    ):
        if not good:
            raise ValueError(f"{key} is {value!r}; it must be {expected}.")
    unknown = [n for n in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if n not in DatasetCatalog]
    if unknown:
        raise ValueError(
            f"DATASETS names {', '.join(map(repr, unknown))}, which nobody has registered; give "
            "--register-coco NAME JSON IMAGES for data in COCO's format."
        )


class SKDTrainer(DefaultTrainer):
    """
    Trains what the config describes, distilling or not, and evaluates it.

    Nothing in here knows of distillation: :class:`DistillRCNN` works in any trainer.
    """

    def __init__(self, cfg: CfgNode):
        # Stands for DefaultTrainer.__init__, which has no place to wrap the model differently.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        check_solver(cfg)
        check_amp(cfg.SOLVER.AMP.ENABLED, "SOLVER.AMP.ENABLED")
        accumulate = cfg.SOLVER.get("ACCUMULATE", 1)
        check_accumulate(accumulate, cfg.SOLVER.IMS_PER_BATCH, "SOLVER.ACCUMULATE")
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = wrap_data_parallel(model, broadcast_buffers=False)
        self._trainer = build_trainer(
            model, data_loader, optimizer, cfg.SOLVER.AMP.ENABLED, accumulate,
            cfg.SOLVER.get("SKIP_NON_FINITE", 0),
        )  # fmt: skip
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        steps = ReproducibleSteps(data_loader, shared_seed(cfg.SEED))
        datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
        write_record(cfg.OUTPUT_DIR, getattr(model, "module", model), datasets, steps.seed)
        self.register_hooks([steps, *self.build_hooks(), PreemptionHook(self.checkpointer)])

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(dataset_name, cfg.OUTPUT_DIR)
