"""Training from LazyConfig files, with the steps of Detectron2's lazyconfig_train_net.py."""

from typing import Any, Dict

from detectron2.config import instantiate
from detectron2.data import build_detection_train_loader
from detectron2.engine import default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch import nn

from ..data.coco import lazy_datasets
from ..runtime.checkpoint import SafeCheckpointer
from ..runtime.loader import build_train_loader
from ..runtime.preemption import PreemptionHook
from ..runtime.record import write_record
from ..runtime.reproducible import ReproducibleSteps, shared_seed
from ..runtime.step import build_trainer, check_accumulate
from .trainer import check_amp, wrap_data_parallel


def do_test(cfg: DictConfig, model: nn.Module) -> Dict[str, Any]:
    """Evaluate a model on ``cfg.dataloader.test`` with ``cfg.dataloader.evaluator``."""
    if "evaluator" not in cfg.dataloader:
        return {}
    results = inference_on_dataset(
        model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    )
    print_csv_format(results)
    return results


def do_train(cfg: DictConfig, resume: bool = False) -> Dict[str, Any]:
    """
    Train what a LazyConfig describes.

    Args:
        cfg: with ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader`` and ``train``.
        resume: continue from the last checkpoint in ``cfg.train.output_dir``, if there is one.

    Returns:
        Results of the last evaluation.
    """
    check_amp(cfg.train.amp.enabled, "train.amp.enabled")
    accumulate = cfg.train.get("accumulate", 1)
    check_accumulate(accumulate, cfg.dataloader.train.total_batch_size, "train.accumulate")
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    seed = shared_seed(cfg.train.get("seed", -1))
    data_loader = _train_loader(cfg.dataloader.train, seed)
    model = wrap_data_parallel(model, **cfg.train.ddp)
    write_record(cfg.train.output_dir, getattr(model, "module", model), lazy_datasets(cfg), seed)
    trainer = build_trainer(
        model, data_loader, optimizer, cfg.train.amp.enabled, accumulate,
        cfg.train.get("skip_non_finite", 0),
    )  # fmt: skip
    checkpointer = SafeCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    main = comm.is_main_process()
    evaluation = hooks.EvalHook(cfg.train.eval_period, lambda: do_test(cfg, model))
    trainer.register_hooks(
        [
            ReproducibleSteps(data_loader, seed),
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main else None,
            evaluation,
            (
                hooks.PeriodicWriter(
                    default_writers(cfg.train.output_dir, cfg.train.max_iter),
                    period=cfg.train.log_period,
                )
                if main
                else None
            ),
            PreemptionHook(checkpointer),
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)


def _train_loader(cfg: DictConfig, seed: int):
    """Detectron2's loader becomes one that can go on where it was; any other stays as it is."""
    target = locate(cfg._target_) if isinstance(cfg._target_, str) else cfg._target_
    if target is build_detection_train_loader:
        cfg = {**cfg, "_target_": build_train_loader, "seed": seed}
    return instantiate(cfg)
