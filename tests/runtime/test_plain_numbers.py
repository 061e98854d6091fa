"""Numbers on a model that are in no state_dict."""

import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.engine import launch
from detectron2.utils import comm

from skd.runtime import plain_numbers
from skd.runtime.plain_numbers import PlainNumbers, read_numbers
from tests.helpers import check_resume, distilling, tiny_config
from tests.processes import leave_together


class Trainer:
    iter, max_iter = 0, 10


class Counting(torch.nn.Module):
    def __init__(self, alpha=0.25):
        super().__init__()
        self.alpha, self.on = alpha, True


def test_what_training_changed_is_kept_and_the_rest_follows_the_config():
    outer = Counting()
    object.__setattr__(outer, "hidden", Counting())  # no submodule, as a distilled student
    hook = PlainNumbers(outer, 2)
    hook.trainer = Trainer()
    assert hook.state_dict() == {}
    outer.hidden.mean, outer.hidden.last = 3.5, torch.tensor(2.0)
    state = hook.state_dict()
    again = Counting(alpha=0.5)
    object.__setattr__(again, "hidden", Counting(alpha=0.5))
    loaded = PlainNumbers(again, 2)
    loaded.load_state_dict(state)
    assert (again.hidden.mean, again.hidden.last, again.alpha) == (3.5, torch.tensor(2.0), 0.5)
    assert set(read_numbers(again)) == {"alpha", "hidden.alpha", "hidden.mean", "hidden.last"}
    loaded.trainer = Trainer()
    assert loaded.state_dict() == state  # what it took up, it keeps


def process(out):
    rank = comm.get_rank()
    model = Counting()
    hook = PlainNumbers(model, 2)
    hook.trainer = Trainer()
    hook.trainer.iter, model.mean = 1, float(rank)
    hook.after_step()  # before a checkpoint, which process 0 writes
    state = comm.all_gather(hook.state_dict())[0]
    again = Counting()
    PlainNumbers(again, 2).load_state_dict(state)
    torch.save(again.mean, f"{out}/{rank}")
    leave_together()


def test_each_process_has_its_own(tmp_path):
    launch(process, 2, dist_url="auto", args=(str(tmp_path),))
    assert [torch.load(tmp_path / str(i)) for i in range(2)] == [0.0, 1.0]


def test_all_processes_are_asked_before_an_evaluation_too(monkeypatch):
    """A signal may let process 0 write a checkpoint beside it, when nobody can be asked."""
    monkeypatch.setattr(plain_numbers.comm, "gather", lambda mine: [mine, {"other": 1.0}])
    model = torch.nn.Linear(1, 1)
    hook = PlainNumbers(model, 100, eval_period=3)
    hook.trainer = Trainer()
    hook.trainer.max_iter, model.number = 100, 2.0
    for hook.trainer.iter, others in ((1, []), (2, [{"other": 1.0}])):
        hook.after_step()
        assert hook.state_dict() == {"processes": [{"number": 2.0}, *others]}


def test_retinanet_resumes_to_the_very_weights(teacher_files, shapes, tmp_path):
    plain = tiny_config(
        "retinanet", SEED=3, SOLVER__MAX_ITER=6, SOLVER__CHECKPOINT_PERIOD=2,
        INPUT__MIN_SIZE_TRAIN=(64,), INPUT__MAX_SIZE_TRAIN=64, DATASETS__TEST=(),
    )  # fmt: skip
    cfg = distilling(plain, teacher_files)
    check_resume(cfg, tmp_path, until=4)


def test_fcos_keeps_its_normalizer_too():
    model = instantiate(model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model)
    hook = PlainNumbers(model, 2)
    hook.trainer = Trainer()
    model._ema_update("loss_normalizer", 7, 300)
    assert hook.state_dict() == {"processes": [{"loss_normalizer": model.loss_normalizer}]}


def test_a_detector_with_an_attribute_named_module_is_no_wrapper():
    outer = Counting()
    outer.module = Counting()
    assert "alpha" in read_numbers(outer) and "module.alpha" in read_numbers(outer)
    assert set(read_numbers(torch.nn.DataParallel(Counting()))) == {"alpha"}
