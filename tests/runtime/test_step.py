"""Gradient accumulation gives the gradient of the whole."""

import json
import math
import os
import traceback
import warnings
from collections import Counter
from functools import partial

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from skd import DISTILLER_REGISTRY, student_config
from skd.engine import SKDTrainer
from skd.engine.average import WeightAverage
from skd.modeling.unlabelled import TERM
from skd.runtime.checkpoint import CheckpointError
from skd.runtime.step import _memory_words, build_trainer
from skd.runtime.unlabelled import MARK
from tests.helpers import DEVICES, batch, distilling, tiny_config
from tests.processes import patched, process_config, run_script


@META_ARCH_REGISTRY.register()
class MeanOfP3(GeneralizedRCNN):
    def forward(self, inputs):
        images = self.preprocess_image(inputs)
        return {"loss_own": self.backbone(images.tensor)["p3"].square().mean()}


def distilling_model(teacher_files):
    """Whose losses are all means over images: no batch statistics, and no sampling."""
    cfg = distilling(
        tiny_config(), teacher_files, "mean",
        MODEL__STUDENT__META_ARCHITECTURE="MeanOfP3",
        MODEL__RESNETS__NORM="FrozenBN", MODEL__FPN__NORM="",
        MODEL__DISTILLER__STRUCTURED__NON_LOCAL__NORM="",
    )  # fmt: skip
    torch.manual_seed(0)
    return build_model(cfg)


def gradients(model, accumulate, unlabelled=0):
    images = batch(n=4) + [{**x, MARK: []} for x in batch(n=unlabelled, seed=1)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = build_trainer(model, iter([images] * 2), optimizer, accumulate=accumulate)
    with EventStorage() as storage:
        for _ in range(2):  # the second step starts from zero again
            trainer.run_step()
        losses = {k: v[0] for k, v in storage.latest().items() if "loss" in k}
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("accumulate,unlabelled", [(2, 0), (4, 0), (2, 2)])
def test_the_same_gradients_and_losses(teacher_files, accumulate, unlabelled):
    expected_losses, expected = gradients(distilling_model(teacher_files), 1, unlabelled)
    losses, ours = gradients(distilling_model(teacher_files), accumulate, unlabelled)
    assert bool(losses.get(TERM)) == bool(unlabelled)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert ours.keys() == expected.keys() and any("non_local" in n for n in ours)
    for name, value in expected.items():
        # with these images, the bias of one value is a sum that all but cancels
        cancels = unlabelled and value.numel() == 1
        scale = value.abs().max() + (1e-2 if cancels else 1e-12)
        torch.testing.assert_close(ours[name] / scale, value / scale, rtol=1e-4, atol=1e-5)


def test_steps_that_do_not_divide_the_batch_are_refused(teacher_files, shapes):
    cfg = distilling(tiny_config(SOLVER__IMS_PER_BATCH=4), teacher_files)
    cfg.SOLVER.ACCUMULATE = 3
    with pytest.raises(ValueError, match="SOLVER.ACCUMULATE is 3, and each process gets 4 images"):
        SKDTrainer(cfg)


@pytest.mark.parametrize(
    "key,value,expected",
    [
        ("SOLVER.MAX_ITER", 0, "a whole number above 0"),
        ("SOLVER.MAX_ITER", -5, "a whole number above 0"),
        ("SOLVER.BASE_LR", 0.0, "a number above 0"),
        ("SOLVER.BASE_LR", float("nan"), "a number above 0"),
        ("SOLVER.IMS_PER_BATCH", 0, "a multiple of the number of processes, 1"),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "a whole number above 0"),
        ("TEST.EVAL_PERIOD", -1, "a whole number, 0 or above; 0 for never"),
        ("SOLVER.SKIP_NON_FINITE", -1, "a whole number, 0 or above"),
        ("DATALOADER.NUM_WORKERS", -1, "a whole number, 0 or above"),
        ("DATASETS.TRAIN", (), "a dataset's name"),
    ],
)
def test_values_out_of_range_are_named_before_anything_is_built(key, value, expected):
    cfg = tiny_config()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=rf"^{key} is .*; it must be {expected}"):
        SKDTrainer(cfg)


def test_an_unknown_dataset_is_named(shapes):
    cfg = tiny_config(DATASETS__TRAIN=("mine_trian",))
    with pytest.raises(ValueError, match="'mine_trian', which nobody has registered"):
        SKDTrainer(cfg)


def test_with_a_teacher_without_and_in_two_processes(teacher_files, shapes, tmp_path):
    cfg = tiny_config(SOLVER__IMS_PER_BATCH=4, SOLVER__ACCUMULATE=2, SOLVER__MAX_ITER=2)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("skd_shapes_train",), ()
    (tmp_path / "student.yaml").write_text(cfg.dump())
    common = ["--config-file", tmp_path / "student.yaml", "OUTPUT_DIR", tmp_path / "out"]
    run_script("train_net.py", *common, datasets=shapes)
    state = torch.load(tmp_path / "out" / "model_final.pth")
    assert state["iteration"] == 1
    teacher = ["--teacher", teacher_files[0], "--teacher-weights", teacher_files[1]]
    printed = run_script(
        "train_net.py", *teacher, "--num-gpus", 2, "--dist-url", "auto", *common, datasets=shapes
    )
    assert "loss_distill_structured_am" in printed
    rows = [json.loads(line) for line in open(tmp_path / "out" / "metrics.json")]
    alike = [(row["iteration"], row["distill/cka_p2"]) for row in rows if "distill/cka_p2" in row]
    assert [i for i, value in alike if 0 < value < 1] == [0]  # where the teacher stops it ends
    with open(tmp_path / "out" / "student.yaml") as f:
        assert "ACCUMULATE" not in f.read()


class Waits(TorchDispatchMode):
    """
    What makes the host wait for the device, were this one a GPU: a value that is asked for, a
    choice by a mask, a tensor made of numbers; by where it is.
    """

    ASK = {"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh"}
    ASK |= {"repeat_interleave", "_unique2", "unique_dim", "equal", "is_nonzero"}
    # a tensor's value that is asked for on CPUs only; sizes, which stay on the host
    ON_HOST = {"saved_gradients", "from_tensors", "shapes_to_tensor"}

    def __init__(self, monkeypatch):
        super().__init__()
        self.places = Counter()
        tolist = torch.Tensor.tolist  # of a tensor on a CPU it dispatches nothing
        monkeypatch.setattr(torch.Tensor, "tolist", lambda x: self._see() or tolist(x))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name.startswith("index") and isinstance(args[1], (list, tuple))
        if (
            name in self.ASK
            or masked
            and any(i.dtype == torch.bool for i in args[1] if i is not None)
        ):
            self._see()
        return func(*args, **(kwargs or {}))

    def _see(self):
        stack = traceback.extract_stack()[:-2]
        names = {frame.name for frame in stack}
        if not names & self.ON_HOST:
            place = [f"{f.filename}:{f.lineno}" for f in stack if "/torch/" not in f.filename][-1]
            self.places[BACKWARD if "_engine_run_backward" in names else place] += 1


BACKWARD = "backward"


def total(places):
    return sum(places.values())


def steps(trainer, n=2, first=0):
    with EventStorage(first) as storage:
        for trainer.iter in range(first, first + n):
            trainer.run_step()
            storage.step()
        return storage


class Losses(torch.nn.Module):
    """A model of a few losses and a running statistic, with values to order."""

    def __init__(self, **values):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("statistic", torch.zeros(()))
        self.values, self.metrics, self.calls = values, {}, 0

    def forward(self, batch):
        self.calls += 1
        self.last = float(self.calls)
        now = {k: v(self.calls) if callable(v) else v for k, v in self.values.items()}
        self.statistic += sum(now.values())
        return {k: self.weight * v for k, v in now.items()}

    def pop_metrics(self):
        return self.metrics


def losses_trainer(model, **kwargs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return build_trainer(model, iter([[{"image_id": i}] for i in range(9)]), optimizer, **kwargs)


def test_a_step_asks_for_no_more_values_than_detectron2s(monkeypatch):
    """One copy for all losses and metrics, where Detectron2 makes one for each loss."""
    data = [[{"image_id": i}] for i in range(9)]
    stock, ours = Losses(loss_a=1.0, loss_b=2.0), Losses(loss_a=1.0, loss_b=2.0)
    ours.metrics = {f"distill/{i}": torch.tensor(float(i)) for i in range(5)}
    theirs = SimpleTrainer(stock, iter(data), torch.optim.SGD(stock.parameters(), lr=0.1))
    mine = losses_trainer(ours)
    with monkeypatch.context() as patch, Waits(patch) as counts:
        steps(theirs)
        expected = total(counts.places)
        storage = steps(mine)
    assert expected == 2 * 2 and total(counts.places) - expected == 2 * 1
    assert storage.latest()["distill/4"][0] == 4.0 and storage.latest()["total_loss"][0] < 3.0


def waits(run, device, monkeypatch):
    """How often a function makes the host wait for the device, by where."""
    if device == "cpu":
        with monkeypatch.context() as patch, Waits(patch) as counts:
            run()
        return counts.places
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # not the notice, once a process, that this mode does not detect all synchronizing operations
    found = [w for w in caught if str(w.message).startswith("called a synchronizing CUDA")]
    where = [f"{w.filename}:{w.lineno}" for w in found]
    return Counter(BACKWARD if "/autograd/" in place else place for place in where)


PHASES = {"measuring": 5, "between measurements": 45, "after the teacher": 85}  # of 90 iterations
OWN_LOSSES = 5  # of a Mask R-CNN, each copied by Detectron2 in each step
OTHERS = sorted({name for name, _ in DISTILLER_REGISTRY} - {"StructuredDistiller"})


def waits_of_two_steps(make, cfg, device, phase, monkeypatch, more=()):
    torch.manual_seed(0)
    model = build_model(cfg).to(device)
    data = iter([[*batch(), *more]] * 3)
    trainer = make(model, data, torch.optim.SGD(model.parameters(), 0.0))
    steps(trainer, 1)  # what is made once
    torch.manual_seed(3)  # for the sampling of proposals
    return waits(partial(steps, trainer, first=PHASES[phase]), device, monkeypatch)


def check_waits(cfg, device, phase, monkeypatch, more=()):
    """``more``: images that only a model that distils gets."""
    cfg.MODEL.DISTILLER.BALANCE.UNTIL = 0.9
    plain = student_config(cfg)
    stock = waits_of_two_steps(SimpleTrainer, plain, device, phase, monkeypatch)
    ours = waits_of_two_steps(build_trainer, cfg, device, phase, monkeypatch, more)
    again = stock[BACKWARD] if phase == "measuring" else 0
    expected = total(stock) - 2 * OWN_LOSSES + 2 * 1 + again
    assert total(ours) == expected, (ours - stock, stock - ours)
    assert stock[BACKWARD]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("phase", PHASES)
def test_distillation_waits_for_no_value(teacher_files, device, phase, monkeypatch):
    """
    The only difference to Detectron2's step is its copy of each loss; and where the balance
    measures, the detector's own backward pass, whose waits come a second time.
    """
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=90), teacher_files, balance=True)
    check_waits(cfg, device, phase, monkeypatch)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [*OTHERS, "half size"])
def test_other_methods_wait_for_no_value(teacher_files, device, name, monkeypatch):
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=90), teacher_files, balance=True)
    if name in OTHERS:
        cfg.MODEL.DISTILLER.NAME = name
    else:
        cfg.MODEL.TEACHER.HALF_SIZE = True
    check_waits(cfg, device, "measuring", monkeypatch)


@pytest.mark.parametrize("device", DEVICES)
def test_options_wait_for_no_value(teacher_files, device, monkeypatch):
    """All at once; the side stream is one on a GPU only."""
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=90), teacher_files, balance=True)
    cfg.MODEL.DISTILLER.EVERY, cfg.MODEL.DISTILLER.BALANCE.PER_LEVEL = 2, True
    cfg.MODEL.TEACHER.SIDE_STREAM = True
    others = [{**{k: x[k] for k in ("image", "height", "width")}, MARK: []} for x in batch(seed=1)]
    check_waits(cfg, device, "between measurements", monkeypatch, others)


@pytest.mark.parametrize("theirs", ["abcdef", "abcxyz"])
def test_heads_wait_where_detectron2s_poolers_do(theirs, teacher_files, monkeypatch):
    """And once to choose, where the teacher lacks some of the student's classes."""
    cfg = distilling(tiny_config(SOLVER__MAX_ITER=90), teacher_files, balance=True)
    found = []
    for names in (["RPNHead", "BoxHead", "MaskHead"], []):
        heads = cfg.MODEL.DISTILLER.HEADS
        heads.NAMES, heads.STUDENT_CLASSES = names, list("abcdef")
        heads.TEACHER_CLASSES = list(theirs)
        phase = "between measurements"
        found.append(waits_of_two_steps(build_trainer, cfg, "cpu", phase, monkeypatch))
    more = Counter()
    for place, times in (found[0] - found[1]).items():
        more[os.path.basename(place.split(":")[0])] += times
    assert more.pop("poolers.py") and more.pop("wrappers.py")
    assert more == ({} if theirs == "abcdef" else {"box.py": 2, "mask.py": 2})  # of two steps


@pytest.mark.parametrize("device", DEVICES)
def test_an_average_of_the_weights_waits_for_no_value(device, tmp_path, monkeypatch):
    model = build_model(tiny_config()).to(device)
    average = WeightAverage(model, 0.9, str(tmp_path))
    average.after_step()  # which copies
    assert not waits(average.after_step, device, monkeypatch)


def test_detectron2s_metrics_are_all_there():
    data = [[{"image_id": i}] for i in range(9)]
    stock, ours = Losses(loss_a=1.0, loss_b=2.0), Losses(loss_a=1.0, loss_b=2.0)
    theirs = steps(SimpleTrainer(stock, iter(data), torch.optim.SGD(stock.parameters(), lr=0.1)))
    mine = steps(losses_trainer(ours)).latest()
    assert mine.keys() == theirs.latest().keys()
    for name in ("total_loss", "loss_a", "loss_b"):
        assert mine[name] == pytest.approx(theirs.latest()[name])


@pytest.mark.parametrize("where", ["loss", "metric"])
def test_what_is_not_finite_is_named_and_the_optimizer_has_not_stepped(where):
    model = Losses(loss_a=1.0, loss_b=math.nan if where == "loss" else 2.0)
    model.metrics = {"distill/structured_am_p4": torch.tensor(math.inf)}
    trainer = losses_trainer(model)
    with pytest.raises(FloatingPointError) as error:
        steps(trainer, 1)
    said = str(error.value)
    assert "at iteration 0, images 0: " in said and "distill/structured_am_p4 is inf" in said
    assert ("loss_b is nan" in said) == (where == "loss") and "loss_a" not in said
    assert model.weight == 1


@pytest.mark.parametrize("batch", [{"images": [1]}, "abc", ([1], [2])])
def test_batches_of_another_kind_hide_no_error(batch):
    """Of a loader of the user's own: Detectron2's trainer hands them on as they are."""
    model = Losses(loss_a=math.nan)
    trainer = build_trainer(model, iter([batch]), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(FloatingPointError, match="images without names: loss_a is nan"):
        steps(trainer, 1)
    assert _memory_words(batch, 1, "").startswith("Memory ran out on a batch, with 1 gradient")


def test_a_batch_left_out_leaves_nothing_behind():
    model = Losses(loss_a=lambda call: math.nan if call == 2 else 1.0)
    trainer = losses_trainer(model, skip_non_finite=1)
    steps(trainer, 1)
    weight = model.weight.item()
    model.last = 7.0
    with EventStorage():
        trainer.iter = 1
        trainer.run_step()
    assert model.calls == 1 and model.last == 7.0  # plain numbers too
    assert model.statistic == 1 and model.weight.item() == weight


class _Ruined(torch.autograd.Function):
    """A finite value whose gradient is not."""

    @staticmethod
    def forward(ctx, x, gradient):
        ctx.gradient = gradient
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.gradient, None


class BadGradient(Losses):
    def __init__(self, bad, gradient=math.nan):
        super().__init__(loss_a=1.0)
        self.bad, self.gradient = bad, gradient

    def forward(self, batch):
        losses = super().forward(batch)
        gradient = self.gradient if self.calls in self.bad else 1.0
        return {k: _Ruined.apply(v, gradient) for k, v in losses.items()}


@pytest.mark.parametrize("gradient", [math.nan, math.inf, -math.inf])
def test_a_finite_loss_with_a_gradient_that_is_not_ruins_no_weights(gradient):
    model = BadGradient({1}, gradient)
    with pytest.raises(FloatingPointError, match="The gradient is not finite at iteration 0, im"):
        steps(losses_trainer(model), 1)
    assert model.weight == 1
    model = BadGradient({2}, gradient)
    trainer = losses_trainer(model, skip_non_finite=1)
    steps(trainer, 1)
    weight = model.weight.item()
    with EventStorage():
        trainer.iter = 1
        trainer.run_step()
    assert model.weight.item() == weight and model.statistic == 1  # put back, as for a loss
    assert trainer.state_dict()["left_out"] == 1
    model.bad = {3}  # calls too are put back
    with EventStorage():
        trainer.run_step()
    assert model.weight.item() != weight


def test_batches_left_out_before_a_resume_count():
    trainer = losses_trainer(Losses(loss_a=lambda call: math.nan), skip_non_finite=2)
    steps(trainer, 2)
    again = losses_trainer(Losses(loss_a=lambda call: math.nan), skip_non_finite=2)
    again.load_state_dict(trainer.state_dict())
    with pytest.raises(FloatingPointError, match="2 such batches were skipped before"):
        steps(again, 1)


def amp_trainer(model, **kwargs):
    """A trainer in mixed precision, as far as a CPU has it: with a scaler, in fp32."""
    trainer = losses_trainer(model, amp=True, **kwargs)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    trainer.precision = torch.float32
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_a_step_the_scaler_leaves_out_is_none_of_skip_non_finites():
    model = BadGradient({1}, math.inf)
    trainer = amp_trainer(model, skip_non_finite=1)
    steps(trainer, 1)
    assert model.weight == 1 and trainer.grad_scaler.get_scale() == 2.0
    assert trainer.state_dict()["left_out"] == 0
    model.values["loss_a"] = math.nan  # this one is; and the scale is no reason for it
    steps(trainer, 1)
    assert trainer.state_dict()["left_out"] == 1 and trainer.grad_scaler.get_scale() == 2.0


CLASSES = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
}


@pytest.mark.parametrize(
    "old,new,named",
    [
        ("SGD", "AdamW", True), ("SGD", "AdamW", False), ("AdamW", "SGD", True),
        ("AdamW", "SGD", False), ("Adamax", "Adam", True),
    ],
)  # fmt: skip
def test_a_state_of_another_optimizer_is_refused_before_it_is_touched(old, new, named):
    trainers = [losses_trainer(Losses(loss_a=1.0)) for _ in range(2)]
    for trainer, name in zip(trainers, (old, new)):
        trainer.optimizer = CLASSES[name](trainer.model.parameters())
    steps(trainers[0], 1)
    state = trainers[0].state_dict()
    if not named:  # Detectron2's, and those before
        state.pop("optimizer_class")
    before = trainers[1].optimizer.state_dict()
    with pytest.raises(CheckpointError) as error:
        trainers[1].load_state_dict(state)
    expected = old if named else "another one, without "
    assert f"optimizer is {expected}" in str(error.value) and f"with is {new}." in str(error.value)
    assert trainers[1].optimizer.state_dict() == before


def test_clipping_makes_no_other_optimizer():
    from detectron2.solver import build_optimizer

    model = Losses(loss_a=1.0)
    cfg = tiny_config()
    plain = build_trainer(model, iter([]), build_optimizer(cfg, model))
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = not cfg.SOLVER.CLIP_GRADIENTS.ENABLED
    other = build_trainer(model, iter([]), build_optimizer(cfg, model))
    assert type(plain.optimizer) is not type(other.optimizer)
    other.load_state_dict(plain.state_dict())
    plain.load_state_dict(other.state_dict())


SYNCHRONIZED = """
import torch
from detectron2.utils import comm
from skd.engine import SKDTrainer
from skd.engine.average import WeightAverage

train = SKDTrainer.train

def failing(self):
    if comm.get_rank() == 1:
        calls = []
        def nan(module, inputs, outputs):
            calls.append(1)
            if len(calls) == 2:
                return [[x * float("nan") for x in outputs[0]], outputs[1]]
        self.model.module.proposal_generator.rpn_head.register_forward_hook(nan)
    return train(self)

SKDTrainer.train = failing
"""


def test_a_forward_that_stops_before_a_synchronized_norm_is_an_error_and_hangs_nobody(
    teacher_files, shapes, tmp_path
):
    cfg = distilling(
        tiny_config(
            SOLVER__MAX_ITER=9, SOLVER__SKIP_NON_FINITE=2, MODEL__ROI_MASK_HEAD__NORM="naiveSyncBN"
        ),
        teacher_files,
    )
    printed = run_script(
        patched(tmp_path, SYNCHRONIZED), "--config-file", process_config(cfg, tmp_path),
        "--num-gpus", 2, "--dist-url", "auto", datasets=shapes, ok=False, timeout=150,
    )  # fmt: skip
    assert "with synchronized norms (roi_heads.mask_head" in printed.replace("module.", "")
