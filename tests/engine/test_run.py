"""A run described from either form of config: what each key does, and which values are refused."""

import inspect
import json
import logging
import pickle
import re
import subprocess
import sys

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.engine.defaults import default_setup
from detectron2.evaluation import DatasetEvaluator, verify_results
from omegaconf import DictConfig, OmegaConf

from skd import GradientBalance, distill, student_config
from skd.config import form_of
from skd.config.naming import LAZY as LAZY_FORM
from skd.config.run_settings import keys_of
from skd.engine import DistillationLog, SKDTrainer, describe, evaluate, prepare_evaluation
from skd.engine.lazy_run import _build_test_loader
from skd.engine.missed import Evaluation
from skd.engine.precise_bn import PreciseBN
from skd.engine.run import check, check_device
from skd.runtime.checkpoint import SafeCheckpointer
from skd.runtime.loader import DataError, build_train_loader
from skd.runtime.user_errors import UserError
from skd.train_net import argument_parser, setup
from tests.helpers import DEVICES, distilling, lazy_config, tiny_config
from tests.processes import environment

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")

# The keys of a YAML config that Detectron2's tools/train_net.py, and what it calls, read themselves
# (the model, the loaders, the optimizer and the schedule read theirs as always), and what is done.
TREATED = {
    "OUTPUT_DIR": "honored",
    "MODEL.WEIGHTS": "honored; of which nothing matches: refused",
    "SEED": "honored, by default_setup and at each step",
    "CUDNN_BENCHMARK": "honored, by default_setup",
    "DATASETS.TEST": "honored; of several, each has a folder of results",
    "DATALOADER.NUM_WORKERS": "honored",
    "SOLVER.AMP.ENABLED": "honored; on CPUs in bf16 only",
    "SOLVER.REFERENCE_WORLD_SIZE": "honored",
    "SOLVER.BASE_LR": "honored",
    "SOLVER.CHECKPOINT_PERIOD": "honored",
    "SOLVER.IMS_PER_BATCH": "honored",
    "SOLVER.MAX_ITER": "honored",
    "SOLVER.STEPS": "honored",
    "SOLVER.WARMUP_ITERS": "honored",
    "TEST.EVAL_PERIOD": "honored",
    "TEST.EXPECTED_RESULTS": "honored",
    "TEST.PRECISE_BN.ENABLED": "honored",
    "TEST.PRECISE_BN.NUM_ITER": "honored",
    "TEST.AUG.ENABLED": "honored for R-CNNs; refused for others",
    "TEST.KEYPOINT_OKS_SIGMAS": "honored, though that script does not",
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": "honored by the evaluator",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": "the evaluator takes the dataset's, as Detectron2 advises",
}
# read off the script by hand: Detectron2's package comes without its tools
SCRIPT = {
    "OUTPUT_DIR", "DATASETS.TEST", "MODEL.WEIGHTS", "TEST.AUG.ENABLED",
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
}  # fmt: skip
EVALUATOR = {"TEST.KEYPOINT_OKS_SIGMAS"}

# The same of tools/lazyconfig_train_net.py, by hand too, with what else may be in
# configs/common/train.py, which comes with the package.
TREATED_LAZY = {
    "model": "honored; missing or not made by LazyCall: refused",
    "optimizer": "honored; likewise",
    "optimizer.params.model": "set to the model, in a copy of the section",
    "lr_multiplier": "honored; missing: refused",
    "dataloader.train": "honored; Detectron2's loader resumes where it was",
    "dataloader.test": "honored, if there is an evaluator",
    "dataloader.evaluator": "honored; without one nothing is evaluated",
    "train.output_dir": "honored",
    "train.init_checkpoint": "honored; of which nothing matches: refused",
    "train.max_iter": "honored",
    "train.amp.enabled": "honored; on CPUs in bf16 only",
    "train.ddp.broadcast_buffers": "honored",
    "train.ddp.find_unused_parameters": "honored",
    "train.ddp.fp16_compression": "honored",
    "train.checkpointer.period": "honored",
    "train.checkpointer.max_to_keep": "honored",
    "train.eval_period": "honored",
    "train.log_period": "honored",
    "train.device": "honored",
    "train.seed": "honored, by default_setup and at each step",
    "train.cudnn_benchmark": "honored, by default_setup",
}
LAZY_SCRIPT = {
    "model", "optimizer", "optimizer.params.model", "lr_multiplier", "dataloader.train",
    "dataloader.test", "dataloader.evaluator", "train.output_dir", "train.init_checkpoint",
    "train.max_iter", "train.amp.enabled", "train.eval_period", "train.log_period", "train.device",
}  # fmt: skip


def test_every_key_that_detectron2_reads_is_treated():
    """Fails where another version of Detectron2 reads another key."""
    code = "".join(map(inspect.getsource, (DefaultTrainer, default_setup, verify_results)))
    read = set(re.findall(r"\bcfg\.([A-Z][A-Z_0-9]*(?:\.[A-Z][A-Z_0-9]*)*)", code))
    read |= set(re.findall(r'"([A-Z_]+)", "(?:train|output)', code))
    assert read | SCRIPT | EVALUATOR == set(TREATED)


def leaves(cfg, path):
    for name, value in cfg.items():
        below = f"{path}.{name}"
        yield from leaves(value, below) if isinstance(value, DictConfig) else [below]


def test_every_key_of_lazy_configs_that_detectron2_reads_is_treated(tmp_path, caplog):
    stock = model_zoo.get_config("common/train.py").train
    read = set(re.findall(r'"(train\.[a-z_]+)"', inspect.getsource(default_setup)))
    assert LAZY_SCRIPT | read | set(leaves(stock, "train")) == set(TREATED_LAZY)
    options = ["+train.seed=3", "+train.cudnn_benchmark=False", "train.checkpointer.max_to_keep=2"]
    options += ["train.ddp.broadcast_buffers=True", "train.log_period=7"]
    run = describe(lazy_config(tmp_path, *options))
    assert "No effect" not in caplog.text
    assert run.ddp["broadcast_buffers"] and set(run.ddp) == set(stock.ddp)
    assert run.checkpointer == {"max_to_keep": 2} and (run.seed, run.log_period) == (3, 7)


def hook(trainer, kind):
    (found,) = [h for h in trainer._hooks if type(h) is kind]
    return found


def test_the_keys_of_the_default_trainer_have_their_effect(shapes, tmp_path):
    """All at once, scaled from 2 processes to this one."""
    cfg = tiny_config(OUTPUT_DIR=str(tmp_path), SOLVER__REFERENCE_WORLD_SIZE=2, SEED=7)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 8, 0.02, 10
    cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = (5,), 2, 0.25
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = 3, 4
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 11
    cfg.DATALOADER.NUM_WORKERS = 1
    trainer = SKDTrainer(cfg)
    assert trainer.data_loader.images_per_batch == 4
    assert trainer.data_loader.kwargs["num_workers"] == 1
    assert trainer.data_loader.seed == 7
    assert trainer.optimizer.defaults["lr"] == 0.01
    assert trainer.max_iter == trainer.cfg.SOLVER.MAX_ITER == 20
    multiplier = trainer.scheduler._multiplier
    assert [multiplier(where) for where in (0, 9.9 / 20, 10.1 / 20)] == [0.25, 1, 0.1]
    assert hook(trainer, hooks.PeriodicCheckpointer).period == 6
    assert hook(trainer, Evaluation)._period == 8
    assert hook(trainer, PreciseBN)._num_iter == 11
    assert trainer.checkpointer.save_dir == str(tmp_path)


def test_the_best_metric_of_several_lazy_test_sets_has_no_set_s_name(shapes, tmp_path):
    """One evaluator gives one result for all of them; YAML configs have one each."""
    names = "dataloader.test.dataset.names=[tiny_val,tiny_train]"
    check(describe(lazy_config(tmp_path, names, "+train.best_metric=bbox/AP")), training=True)


@pytest.mark.parametrize("device", DEVICES)
def test_a_lazy_distillation_resumes_and_in_bf16_on_a_gpu(device, teacher_files, shapes, tmp_path):
    mixed = ["train.amp.enabled=True", "+train.amp.precision=bf16"] if device == "cuda" else []
    cfg = lazy_config(tmp_path, f"train.device={device}", "train.max_iter=2", *mixed)
    distill(cfg, *teacher_files)
    cfg.model.balance.until = 1.0
    del cfg.dataloader["evaluator"]
    SKDTrainer(cfg).train()
    saved = torch.load(tmp_path / "lazy" / "model_final.pth", map_location="cpu")["model"]
    cfg.train.max_iter, cfg.model.every = 4, 2
    trainer, seen = SKDTrainer(cfg), []
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    model = trainer.model
    of_the_run = {k: v.cpu() for k, v in model.state_dict().items()}
    assert all(torch.equal(v, of_the_run[k]) for k, v in saved.items())
    model.backbone.fpn_output2.register_forward_hook(
        lambda _, __, y: seen.append((y.device.type, y.dtype))
    )
    trainer.train()
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    assert seen == [(device, dtype)] * 2
    terms = [k for k in trainer.storage.histories() if k.startswith("loss_distill_")]
    assert terms and all(trainer.storage.history(k).values()[0][0] > 0 for k in terms)
    assert all(x.isfinite().all() for x in model.parameters())
    assert torch.load(tmp_path / "lazy" / "model_final.pth")["iteration"] == 3


@pytest.mark.parametrize("given", [None, {"share": 1.0}, {"max_iter": 30, "until": 0.5}])
def test_a_lazy_balance_learns_the_length_of_the_training(given, teacher_files, tmp_path):
    """A balance learns it also where the config names none, or one without its max_iter."""
    cfg = lazy_config(tmp_path, "train.max_iter=9")
    distill(cfg, *teacher_files)
    cfg.model.pop("balance")
    if given:
        cfg.model.balance = LazyCall(GradientBalance)(**given)
    balance = describe(cfg).build_model().distiller.balance
    assert balance.end() == (15 if given and "until" in given else 3)


def test_both_forms_have_the_same_hooks_and_return_the_results(shapes, tmp_path):
    cfg = tiny_config(OUTPUT_DIR=str(tmp_path / "yaml"), SOLVER__MAX_ITER=1)
    names = []
    lazy = lazy_config(tmp_path, "train.max_iter=1", "train.log_period=3")
    for form, period in ((cfg, 100), (lazy, 15)):
        trainer = SKDTrainer(form)
        names.append([type(h).__name__ for h in trainer._hooks])
        assert hook(trainer, DistillationLog).period == period
        assert {"bbox", "segm"} == set(trainer.train())
    assert names[0] == names[1]
    shown = ["AttentionPictures", "DistillationLog"]
    assert names[0][-5:] == ["PeriodicWriter", *shown, "PreemptionHook", "MissedEvaluation"]


@pytest.mark.parametrize("key", ["VIS_PERIOD", "train.vis_period"])
def test_both_forms_say_how_often_a_picture_is_wanted(key, shapes, tmp_path):
    lazy = key.startswith("train")
    runs = [
        describe(lazy_config(tmp_path, f"{key}={n}") if lazy else tiny_config(VIS_PERIOD=n))
        for n in (7, -1)
    ]
    assert runs[0].vis_period == 7
    with pytest.raises(ValueError, match=f"^{key} is -1; it must be a whole number"):
        check(runs[1])


def test_a_lazy_checkpoint_is_as_detectron2_s_script_writes_it(shapes, tmp_path):
    cfg = lazy_config(tmp_path, "train.max_iter=2")
    del cfg.dataloader["evaluator"]
    SKDTrainer(cfg).train()
    state = torch.load(tmp_path / "lazy" / "model_final.pth")["trainer"]
    assert {"iteration", "hooks", "optimizer"} <= set(state) and state["iteration"] == 1
    cfg.train.max_iter = 3
    again = SKDTrainer(cfg)
    again.resume_or_load(resume=True)
    assert again.start_iter == 2
    first, second = state["optimizer"]["state"][0], again.optimizer.state_dict()["state"][0]
    assert torch.equal(first["momentum_buffer"], second["momentum_buffer"])


def test_a_subclass_makes_its_own_parts(shapes, tmp_path):
    called = []

    class Evaluator(DatasetEvaluator):
        def process(self, inputs, outputs):
            pass

        def evaluate(self):
            return {"mine": {"AP": 12.0}}

    class Mine(SKDTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            called.append("loader")
            return build_train_loader(cfg)

        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return Evaluator()

        def build_hooks(self):
            found = super().build_hooks()
            found.insert(-1, Count())
            return found

    class Count(HookBase):
        def after_step(self):
            called.append("step")

    assert Mine(tiny_config(OUTPUT_DIR=str(tmp_path), SOLVER__MAX_ITER=2)).train() == {
        "mine": {"AP": 12.0}
    }
    assert called == ["loader", "step", "step"]
    rows = [json.loads(line) for line in open(tmp_path / "metrics.json")]
    assert rows[-1]["mine/AP"] == 12.0


def augmented(**changes):
    return tiny_config(
        TEST__AUG__ENABLED=True, TEST__AUG__MIN_SIZES=(64,), TEST__AUG__MAX_SIZE=96, **changes
    )


def test_augmentation_and_two_test_sets_in_training(teacher_files, shapes, tmp_path):
    cfg = distilling(augmented(OUTPUT_DIR=str(tmp_path), SOLVER__MAX_ITER=1), teacher_files)
    cfg.DATASETS.TEST = ("tiny_val", "tiny_train")
    results = SKDTrainer(cfg).train()
    sets = {"tiny_val", "tiny_train", "tiny_val_TTA", "tiny_train_TTA"}
    assert set(results) == sets
    last = [json.loads(line) for line in open(tmp_path / "metrics.json")][-1]
    assert {f"{name}/bbox/AP" for name in sets} <= set(last)
    for folder in ("inference", "inference_TTA"):
        for name in cfg.DATASETS.TEST:
            assert (tmp_path / folder / name / "coco_instances_results.json").is_file()


def test_augmentation_in_evaluation(shapes, tmp_path):
    results = evaluate(describe(augmented(OUTPUT_DIR=str(tmp_path))))
    assert set(results) == {"bbox", "segm", "bbox_TTA", "segm_TTA"}
    assert "bbox_TTA/AP" in json.loads((tmp_path / "metrics.json").read_text())
    assert (tmp_path / "inference" / "coco_instances_results.json").is_file()
    assert (tmp_path / "inference_TTA" / "coco_instances_results.json").is_file()


@pytest.mark.parametrize(
    "cfg,reason",
    [
        (lambda: augmented(kind="retinanet"), "META_ARCHITECTURE is RetinaNet, .* R-CNNs only"),
        (lambda: augmented(MODEL__META_ARCHITECTURE="PanopticFPN"), "PanopticFPN"),
        (lambda: augmented(MODEL__KEYPOINT_ON=True), "MODEL.KEYPOINT_ON"),
    ],
)
def test_augmentation_is_refused_where_there_is_none(cfg, reason):
    with pytest.raises(ValueError, match=f"^TEST.AUG.ENABLED is True, but .*{reason}"):
        SKDTrainer(cfg())


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"TEST__AUG__ENABLED": True, "TEST__AUG__MIN_SIZES": ()}, "MIN_SIZES is .*at least one"),
        ({"TEST__AUG__ENABLED": True, "TEST__AUG__MAX_SIZE": 0}, "MAX_SIZE is 0; it must be a"),
        ({"INPUT__MIN_SIZE_TEST": -4}, "INPUT.MIN_SIZE_TEST is -4; it must be a size"),
        ({"INPUT__MAX_SIZE_TEST": 0}, "INPUT.MAX_SIZE_TEST is 0; it must be a size"),
    ],
)
def test_sizes_of_the_evaluation_are_told_before_training(changes, said):
    with pytest.raises(ValueError, match=said):
        describe(tiny_config(**changes))


@pytest.mark.parametrize("part,training", [("TRAIN", True), ("TEST", False)])
def test_proposals_have_files(part, training, shapes):
    cfg = tiny_config(MODEL__LOAD_PROPOSALS=True)
    with pytest.raises(ValueError, match=rf"PROPOSAL_FILES_{part} is \(\); it must name a file"):
        check(describe(cfg), training=training)


@pytest.mark.parametrize("device", ["meta", "xla"])
def test_devices_that_cannot_compute_here_are_named(device):
    with pytest.raises(ValueError, match=f"^MODEL.DEVICE is '{device}', and PyTorch has no"):
        check_device(device, "MODEL.DEVICE")


@pytest.mark.parametrize("resume", [False, True])
def test_an_evaluation_of_nothing_trained_says_so(resume, shapes, tmp_path, caplog):
    run = describe(tiny_config(OUTPUT_DIR=str(tmp_path)))
    with caplog.at_level(logging.WARNING, "skd.engine.evaluate"):
        prepare_evaluation(run, resume=resume)
    assert "MODEL.WEIGHTS is '': RANDOM WEIGHTS ARE EVALUATED." in caplog.text
    assert (f"Nothing to resume from in '{tmp_path}'" in caplog.text) == resume
    caplog.clear()
    run.weights = str(tmp_path / "model_1.pth")
    SafeCheckpointer(run.build_model(), str(tmp_path)).save("model_1")
    with caplog.at_level(logging.WARNING, "skd.engine.evaluate"):
        prepare_evaluation(run, resume=False)
    run.weights = ""
    with caplog.at_level(logging.WARNING, "skd.engine.evaluate"):
        prepare_evaluation(run, resume=True)
    assert "skd.engine.evaluate" not in [r.name for r in caplog.records]


def test_augmentation_needs_an_evaluator_that_goes_elsewhere():
    class Mine(SKDTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            raise AssertionError("not to be called")

    with pytest.raises(ValueError, match="takes no output_folder"):
        Mine(augmented())


def test_sigmas_of_keypoints_reach_the_evaluator(shapes, tmp_path):
    cfg = tiny_config(TEST__KEYPOINT_OKS_SIGMAS=[0.1, 0.2], OUTPUT_DIR=str(tmp_path))
    assert list(SKDTrainer.build_evaluator(cfg, "tiny_val")._kpt_oks_sigmas) == [0.1, 0.2]


@pytest.mark.parametrize("form", ["yaml", "lazy"])
def test_expected_results_are_verified(form, shapes, tmp_path):
    cfg = tiny_config(TEST__EXPECTED_RESULTS=[["bbox", "AP", 30.0, 0.5]])
    if form == "lazy":
        cfg = lazy_config(tmp_path, "train.expected_results=[[bbox,AP,30.0,0.5]]")
    run = describe(cfg)
    run.verify({"bbox": {"AP": 30.4}})
    with pytest.raises(SystemExit):
        run.verify({"bbox": {"AP": 30.6}})


@pytest.mark.parametrize(
    "rows", [[["bbox", "AP", 30.0]], ["bbox"], [[1, "AP", 30.0, 1]], [["bbox", "AP", "x", 1]], "x"]
)
@pytest.mark.parametrize("training", [True, False])
def test_expected_results_that_are_none_are_named_before_the_work(rows, training, shapes):
    run = describe(tiny_config())
    run.expected = rows
    with pytest.raises(ValueError, match=r"^TEST.EXPECTED_RESULTS is .* a list of \[task, metric"):
        check(run, training)


def test_expected_results_of_a_task_that_is_not_there_are_named(shapes):
    run = describe(tiny_config(TEST__EXPECTED_RESULTS=[["box", "AP", 30.0, 0.5]]))
    with pytest.raises(UserError, match="EXPECTED_RESULTS names 'box', .* are of 'bbox', 'segm'"):
        run.verify({"bbox": {"AP": 30.4}, "segm": {}})


@CPU_ONLY
@pytest.mark.parametrize("training", [True, False])
def test_a_missing_gpu_is_named_in_the_words_of_the_form(training, shapes, tmp_path):
    yaml = tiny_config(MODEL__DEVICE="cuda", OUTPUT_DIR=str(tmp_path))
    lazy = lazy_config(tmp_path, "train.device=cuda:0")
    for cfg, key, to in ((yaml, "MODEL.DEVICE", " "), (lazy, "train.device", "=")):
        with pytest.raises(ValueError, match=f"^{key} is 'cuda.* set {key}{to}cpu"):
            SKDTrainer(cfg) if training else evaluate(describe(cfg))


@pytest.mark.parametrize(
    "name,option,message",
    [
        ("max_iter", "0", "is 0; it must be a whole number above 0"),
        ("learning_rate", "-1.0", r"is -1.0; it must be a number above 0"),
        ("images_per_batch", "0", "is 0; it must be a multiple of the number of processes"),
        ("checkpoint_period", "0", "is 0; it must be a whole number above 0"),
        ("eval_period", "-1", "is -1; it must be a whole number, 0 or above"),
        ("num_workers", "-1", "is -1; it must be a whole number, 0 or above"),
        ("accumulate", "3", "is 3, and each process gets 2 images"),
        ("train_sets", "typo", "names 'typo', which nobody has registered"),
        ("test_sets", "typo", "names 'typo', which nobody has registered"),
        ("amp", "True", "is True, and train.amp.precision=fp16 needs a GPU: set it bf16"),
    ],
)
def test_lazy_values_out_of_range_are_named_by_their_path(name, option, message, shapes, tmp_path):
    key = keys_of(LAZY_FORM)[name]
    with pytest.raises(ValueError, match=f"^{re.escape(key)} {message}"):
        SKDTrainer(lazy_config(tmp_path, f"{key}={option}"))


@pytest.mark.parametrize(
    "path,value,words",
    [
        ("model", None, "model is missing"),
        ("train", None, "train is missing"),
        ("train.ddp", 5, "train.ddp is 5; it must be a section"),
        ("train.amp", 5, "train.amp is 5; it must be a section"),
        ("train.seed", "x", "train.seed is 'x'; it must be a whole number"),
        ("train.output_dir", 5, "train.output_dir is 5; it must be text"),
        ("train.cudnn_benchmark", "x", "train.cudnn_benchmark is 'x'; it must be True or False"),
        ("dataloader.train.dataset.names", 5, "dataloader.train.dataset.names is 5; it must be a"),
        ("dataloader.test.dataset.names", 5, "dataloader.test.dataset.names is 5; it must be a"),
        ("dataloader.evaluator", 5, "dataloader.evaluator is 5; it must be made by LazyCall"),
        ("optimizer", None, "optimizer is missing"),
        ("optimizer.params", 5, "optimizer.params is 5; it must be a section"),
        ("lr_multiplier", None, "lr_multiplier is missing"),
        ("dataloader.train._target_", None, "dataloader.train has no _target_"),
    ],
)
def test_sections_and_kinds_of_a_lazy_config_are_named(path, value, words, tmp_path):
    cfg = lazy_config(tmp_path)
    OmegaConf.update(cfg, path, value, force_add=True)
    if value is None:
        parent, _, name = path.rpartition(".")
        del (OmegaConf.select(cfg, parent) if parent else cfg)[name]
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        form_of(cfg).check(cfg)
        form_of(cfg).check_training(cfg)


@pytest.mark.parametrize("path", ["optimizer", "lr_multiplier", "dataloader.train"])
def test_python_is_told_of_missing_sections_as_the_command_line_is(path, tmp_path):
    cfg = lazy_config(tmp_path)
    parent, _, name = path.rpartition(".")
    del (OmegaConf.select(cfg, parent) if parent else cfg)[name]
    with pytest.raises(ValueError, match=f"^{path} is missing"):
        SKDTrainer(cfg)


def test_an_evaluator_needs_a_test_set_before_training(tmp_path):
    cfg = lazy_config(tmp_path)
    cfg.dataloader.evaluator = LazyCall(DatasetEvaluator)()
    cfg.dataloader.pop("test", None)
    with pytest.raises(ValueError, match="^dataloader.test is missing"):
        describe(cfg)


@pytest.mark.parametrize("flags", [[], ["--eval-only"], ["--teacher", "none.yaml"]])
def test_a_lazy_config_without_a_model_is_told_first(flags, tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("train = {'output_dir': 'out'}")
    with pytest.raises(ValueError, match="^model is missing"):
        setup(argument_parser().parse_args(["--config-file", str(path), *flags]))


@pytest.mark.parametrize("section,known", [("checkpointer", "period"), ("ddp", "static_graph")])
def test_arguments_that_nobody_takes_are_named(section, known, tmp_path):
    with pytest.raises(ValueError, match=f"^train.{section} has other; it must be of .*{known}"):
        describe(lazy_config(tmp_path, f"+train.{section}.other=5"))


def test_a_lazy_config_may_leave_out_ddp(tmp_path):
    assert describe(lazy_config(tmp_path, "train.ddp=null")).ddp == {}


def test_what_lazy_training_does_not_do_is_said(tmp_path, caplog):
    describe(lazy_config(tmp_path, "+train.async_write_metrics=True"))
    assert "train.async_write_metrics is True, and metrics are written at once" in caplog.text
    with pytest.raises(ValueError, match="^train.amp.precision is 'int8'; .* fp16, bf16"):
        check(describe(lazy_config(tmp_path, "+train.amp.precision=int8")))
    run = describe(lazy_config(tmp_path, "+train.amp.precision=bf16", "train.amp.enabled=True"))
    assert run.amp and run.amp_precision == "bf16"
    describe(lazy_config(tmp_path, "+train.zero_grad_before_forward=True", "+train.model_ema=1"))
    assert "No effect here: train.model_ema." in caplog.text


def test_a_teacher_and_a_config_that_distils_come_together(teacher_files, tmp_path):
    cfg = tiny_config()
    cfg.MODEL.TEACHER.CONFIG_FILE = teacher_files[0]
    with pytest.raises(ValueError, match="^MODEL.TEACHER.CONFIG_FILE is .* does not distil"):
        SKDTrainer(cfg)
    cfg = distilling(tiny_config(), teacher_files)
    cfg.MODEL.TEACHER.CONFIG_FILE = ""
    with pytest.raises(ValueError, match="MODEL.TEACHER.CONFIG_FILE is empty: name a teacher"):
        SKDTrainer(cfg)
    describe(student_config(cfg))
    lazy = lazy_config(tmp_path)
    lazy.model = {"_target_": "skd.DistillRCNN", "student": lazy.model}
    with pytest.raises(ValueError, match="model.teacher is missing"):
        SKDTrainer(lazy)


@pytest.mark.parametrize("form", ["pth", "pkl"])
def test_weights_of_which_nothing_matches_are_refused(form, teacher_files, shapes, tmp_path):
    """Such weights are refused with a distiller too, whose layers no file to start from has."""
    path = tmp_path / f"other.{form}"
    if form == "pth":
        torch.save({"model": {"trunk.weight": torch.zeros(3), "trunk.bias": torch.zeros(3)}}, path)
    else:
        arrays = {"trunk.weight": torch.zeros(3).numpy(), "trunk.bias": torch.zeros(3).numpy()}
        content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
        path.write_bytes(pickle.dumps(content))
    cfg = tiny_config(MODEL__WEIGHTS=str(path), OUTPUT_DIR=str(tmp_path))
    for cfg in (cfg, distilling(cfg, teacher_files)):
        trainer = SKDTrainer(cfg)
        with pytest.raises(ValueError, match=r"^MODEL.WEIGHTS is '.*takes none of its 2 tensors"):
            trainer.resume_or_load(resume=False)


def test_the_package_runs_without_the_checkout(tmp_path):
    """The package runs from elsewhere, and importing it makes no dataset known."""
    code = (
        "import skd\nfrom detectron2.data import DatasetCatalog\n"
        "assert not [name for name in DatasetCatalog if 'skd' in name]"
    )
    for arguments in (["-c", code], ["-m", "skd.train_net", "--help"]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment(tmp_path), text=True,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "--teacher-weights" in done.stdout


def test_errors_of_a_lazy_evaluation_name_the_image():
    cfg = LazyCall(build_detection_test_loader)(
        dataset=[{"file_name": "/gone.png", "image_id": 7}],
        mapper=LazyCall(DatasetMapper)(is_train=False, augmentations=[], image_format="BGR"),
        num_workers=0,
    )
    with pytest.raises(DataError, match="Image '/gone.png' .id 7. cannot be used: FileNotFound"):
        next(iter(_build_test_loader(cfg)))


def test_keys_without_effect_are_one_warning(teacher_files, caplog):
    cfg = tiny_config(MODEL__DISTILLER__NAME="FGD", MODEL__TEACHER__PRECISION="bf16")
    cfg.MODEL.DISTILLER.BALANCE.SHARE = 7.0
    cfg.MODEL.STUDENT.PROJECTS = ["is.read:anyway"]
    form_of(cfg).check_teacher(cfg)
    (said,) = [r.getMessage() for r in caplog.records]
    assert "No effect, because the config does not distil: " in said and "PROJECTS" not in said
    for words in ("NAME 'FGD'", "BALANCE.SHARE 7.0"):
        assert f"MODEL.DISTILLER.{words}" in said
    assert "MODEL.TEACHER.PRECISION 'bf16'" in said and "META_ARCH" not in said
    caplog.clear()
    distill(cfg, *teacher_files)
    for silent in (cfg, tiny_config()):
        form_of(silent).check_teacher(silent)
    assert not caplog.records


@pytest.mark.parametrize("option", ["train.max_iter", "train.max_iter=[1", "train.max_iter 5"])
def test_options_that_are_none_are_one_line(tmp_path, option):
    with pytest.raises(ValueError, match="for a LazyConfig each must be key=value[.]$") as error:
        form_of(lazy_config(tmp_path)).override(lazy_config(tmp_path), [option])
    assert option in str(error.value) and "\n" not in str(error.value)
