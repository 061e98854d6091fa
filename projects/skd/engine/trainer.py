"""Detectron2's DefaultTrainer, with evaluators and with several processes on CPUs."""

import logging
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, create_ddp_model
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..checkpoint import SafeCheckpointer
from ..data.loader import build_train_loader
from ..evaluation import build_evaluator
from .preemption import PreemptionHook
from .record import write_record
from .reproducible import ReproducibleSteps, shared_seed
from .step import build_trainer, check_accumulate

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


class SKDTrainer(DefaultTrainer):
    """
    Trains what the config describes, distilling or not, and evaluates it.

    Nothing in here knows of distillation: :class:`DistillRCNN` works in any trainer.
    """

    def __init__(self, cfg: CfgNode):
        # Stands for DefaultTrainer.__init__, which has no place to wrap the model differently.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
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
