#!/usr/bin/env python
"""
Train or evaluate a Detectron2 model, with a teacher or without.

    python train_net.py --config-file CONFIG --num-gpus 8 [--teacher CONFIG] [KEY VALUE ...]
    torchrun --nproc-per-node 8 train_net.py --config-file CONFIG ...

CONFIG is any Detectron2 config, a .yaml or a LazyConfig .py. It distils if it says so itself (see
configs/) or if --teacher is given; otherwise the plain model is trained.
"""

import os

from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from skd import distill, student_config
from skd.config import SOLVER_KEYS, is_distilling, is_lazy_file, read_config
from skd.data import check_classes, check_classes_lazy, lazy_datasets, register_coco
from skd.engine import SKDTrainer, do_test, do_train, launch
from skd.evaluation import write_results
from skd.runtime.checkpoint import SafeCheckpointer
from skd.runtime.record import write_record


def argument_parser():
    parser = default_argument_parser()
    parser.add_argument(
        "--teacher",
        default="",
        metavar="CONFIG",
        help="distil from this detector: a .yaml or LazyConfig .py file or a model-zoo name",
    )
    parser.add_argument(
        "--teacher-weights",
        default="",
        metavar="FILE",
        help="the teacher's checkpoint, path or URL (default: the model zoo's)",
    )
    parser.add_argument(
        "--register-coco",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGES"),
        help="make a data set in COCO's format known as NAME, for DATASETS.TRAIN and DATASETS.TEST "
        "(may be given several times)",
    )
    return parser


def setup(args) -> CfgNode:
    """Build the config from a .yaml file, the flags and the options, and start the log."""
    cfg = read_config(args.config_file)
    if args.teacher:
        distill(cfg, args.teacher, args.teacher_weights)
    cfg.merge_from_list(args.opts)
    check_classes(cfg)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="skd")
    plain = student_config(cfg)
    if args.eval_only or not cfg.MODEL.TEACHER.CONFIG_FILE:
        ours = {key: cfg.SOLVER[key] for key in SOLVER_KEYS}
        cfg = plain  # nothing to learn, or nobody to learn from
        cfg.SOLVER.update({k: v for k, v in ours.items() if v != SOLVER_KEYS[k]})
    cfg.freeze()
    default_setup(cfg, args)
    if comm.is_main_process() and is_distilling(cfg):
        plain.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
        if "TIMM" in plain.MODEL:
            plain.MODEL.TIMM.PRETRAINED = False  # nothing to fetch: all is in MODEL.WEIGHTS
        with PathManager.open(os.path.join(cfg.OUTPUT_DIR, "student.yaml"), "w") as f:
            f.write(plain.dump())
    return cfg


def main(args):
    if not args.config_file:
        raise ValueError("--config-file is missing: give a .yaml or a LazyConfig .py file.")
    if args.teacher_weights and not args.teacher:
        raise ValueError("--teacher-weights without --teacher: name the teacher's config too.")
    for data_set in args.register_coco:
        register_coco(*data_set)
    if is_lazy_file(args.config_file):
        return main_lazy(args)
    cfg = setup(args)
    if args.eval_only:
        model = SKDTrainer.build_model(cfg)
        write_record(cfg.OUTPUT_DIR, model, cfg.DATASETS.TEST, cfg.SEED)
        loaded = SafeCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        results = SKDTrainer.test(cfg, model)
        write_results(results, cfg.OUTPUT_DIR, loaded.get("iteration", 0))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = SKDTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def main_lazy(args):
    """The same for a LazyConfig."""
    cfg = read_config(args.config_file)
    if args.teacher:
        distill(cfg, args.teacher, args.teacher_weights)
    cfg = LazyConfig.apply_overrides(cfg, args.opts)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="skd")
    plain = student_config(cfg)
    check_classes_lazy(plain)
    if args.eval_only:
        cfg = plain
    default_setup(cfg, args)
    if args.eval_only:
        model = instantiate(cfg.model).to(cfg.train.device)
        write_record(cfg.train.output_dir, model, lazy_datasets(cfg), cfg.train.get("seed", -1))
        loaded = SafeCheckpointer(model, save_dir=cfg.train.output_dir).resume_or_load(
            cfg.train.init_checkpoint, resume=args.resume
        )
        results = do_test(cfg, model)
        write_results(results, cfg.train.output_dir, loaded.get("iteration", 0))
        return results
    if comm.is_main_process() and is_distilling(cfg):
        plain.train.init_checkpoint = os.path.join(cfg.train.output_dir, "model_final.pth")
        LazyConfig.save(plain, os.path.join(cfg.train.output_dir, "student.yaml"))
    return do_train(cfg, resume=args.resume)


if __name__ == "__main__":
    args = argument_parser().parse_args()
    launch(main, args)
