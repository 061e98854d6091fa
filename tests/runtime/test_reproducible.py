"""Interrupted or not, and with any number of workers: the same batches, the same weights."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RandomSubsetTrainingSampler, TrainingSampler

from skd.engine import SKDTrainer
from skd.runtime.loader import build_train_loader, seeded
from skd.runtime.reproducible import ReproducibleSteps
from tests.helpers import differing, distilling, take, tiny_config, train_until
from tests.processes import environment, patched_forward, process_config, run_script

RECORDS = [
    {"width": w, "height": h, "image_id": i}
    for i, (w, h) in enumerate([(9, 6), (6, 9), (8, 8), (7, 3), (3, 7)] * 5)
]


def noisy(record):
    """A mapper that draws from every generator there is."""
    import random

    numbers = [random.random(), np.random.rand(), torch.rand(1).item()]
    return {**record, "numbers": numbers}


def loader(workers=0, seed=5, batch=4, grouping=True, records=RECORDS):
    return build_train_loader(
        records, mapper=noisy, total_batch_size=batch, num_workers=workers, seed=seed,
        aspect_ratio_grouping=grouping,
    )  # fmt: skip


def test_batches_are_detectron2s_and_do_not_depend_on_workers():
    ours = take(loader(), 9)
    stock = build_detection_train_loader(
        RECORDS, mapper=noisy, total_batch_size=4, sampler=TrainingSampler(len(RECORDS), seed=5)
    )
    ids = [[x["image_id"] for x in batch] for batch in ours]
    assert ids == [[x["image_id"] for x in batch] for batch in take(stock, 9)]
    for batch in ours:
        assert len({x["width"] > x["height"] for x in batch}) == 1
    assert take(loader(workers=2), 9) == ours


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_where_it_was(workers, grouping):
    whole = take(loader(grouping=grouping), 10)
    rest = loader(workers, seed=77, grouping=grouping)
    rest.resume(5, 4 * 6)
    assert take(rest, 4) == whole[6:]


@pytest.mark.parametrize("kind", ["ours", "stock"])
@pytest.mark.parametrize("grouping,images", [(True, 2 * 2), (False, 2 * 2 * 4)])
def test_as_many_images_wait_as_detectron2s_loader_keeps(kind, grouping, images, tmp_path):
    """Two for each of two workers; without grouping, where workers make batches, two batches."""

    def made(record):
        (tmp_path / f"{os.getpid()}_{next(numbers)}").touch()
        return record

    numbers = itertools.count()
    build = build_train_loader if kind == "ours" else build_detection_train_loader
    batches = iter(
        build(
            [{"width": 9, "height": 6}] * 50, mapper=made, total_batch_size=4, num_workers=2,
            sampler=TrainingSampler(50, seed=5), aspect_ratio_grouping=grouping,
        )  # fmt: skip
    )
    next(batches)
    expected = 4 + images
    for _ in range(100):
        if len(os.listdir(tmp_path)) >= expected:
            break
        time.sleep(0.1)
    time.sleep(0.3)  # for one too many
    assert len(os.listdir(tmp_path)) == expected


def test_another_seed_is_another_order_and_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    first, second = take(loader(), 5), take(loader(seed=6), 5)
    assert first != second and torch.equal(before, torch.get_rng_state())


def test_records_without_an_image_are_replaced():
    def mapper(record):
        return None if record["image_id"] % 2 else record

    loader = build_train_loader(RECORDS, mapper=mapper, total_batch_size=5, seed=1)
    assert all(x["image_id"] % 2 == 0 for batch in take(loader, 5) for x in batch)


class At:
    """A trainer in an iteration."""

    def __init__(self, iteration):
        self.iter = iteration


def steps_at(loader, iteration, state=None):
    hook = ReproducibleSteps(loader, 5)
    if state is not None:
        hook.load_state_dict(state)
    hook.trainer = At(iteration)
    return hook


def test_after_a_change_of_the_batch_size_the_place_stays_right():
    """It is right after a second resume too: 30 batches of 4, then 20 of 2, are 160 images."""
    records = [{"width": 9, "height": 6, "image_id": i} for i in range(1000)]
    order = [x["image_id"] for b in take(loader(batch=1, records=records), 200) for x in b]
    state = steps_at(loader(batch=4, records=records), 29).state_dict()
    state = steps_at(loader(batch=2, records=records), 49, state).state_dict()
    last = loader(batch=2, records=records)
    steps_at(last, 49, state)
    assert [x["image_id"] for x in take(last, 1)[0]] == order[160:162]


def test_a_random_subset_stays_the_same():
    def build(seed):
        sampler = RandomSubsetTrainingSampler(len(RECORDS), 0.3)
        return build_train_loader(
            RECORDS, mapper=noisy, sampler=sampler, total_batch_size=2, seed=seed
        )

    first, again = build(None), build(None)
    whole = take(first, 12)
    again.resume(first.seed, 2 * 4)
    assert take(again, 8) == whole[4:]
    assert len({x["image_id"] for batch in whole for x in batch}) == int(0.3 * len(RECORDS))


def test_records_without_sizes_are_loaded_ungrouped():
    records = [{"image_id": i} for i in range(6)]
    assert len(take(loader(records=records), 2)[1]) == 4


def test_a_batch_size_of_zero_is_an_error():
    with pytest.raises(ValueError, match="^total_batch_size is 0; it must be a multiple"):
        loader(batch=0)


class Killed(SKDTrainer):
    """A trainer that is killed between two checkpoints."""

    def before_step(self):
        super().before_step()
        if self.iter == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("seed", [3, -1])
def test_a_resumed_run_gives_the_very_weights(seed, teacher_files, shapes, tmp_path):
    """
    Flips, sampled proposals, dropped masks, statistics by precise batch norm and all; with a seed
    of the user's or none.
    """
    cfg = distilling(
        tiny_config(SEED=seed, SOLVER__MAX_ITER=7, SOLVER__CHECKPOINT_PERIOD=2), teacher_files,
        MODEL__DISTILLER__COMBINE=[["StructuredDistiller", 1.0], ["MGD", 1.0]],
    )  # fmt: skip
    cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD = (), 2
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 1
    with pytest.raises(KeyboardInterrupt):
        train_until(cfg, tmp_path / "stopped", trainer=Killed)
    if seed < 0:  # the whole run goes on from the first checkpoint of the other
        os.makedirs(tmp_path / "whole")
        os.rename(
            tmp_path / "stopped" / "model_0000001.pth", tmp_path / "whole" / "model_0000001.pth"
        )
        (tmp_path / "whole" / "last_checkpoint").write_text("model_0000001.pth")
    whole = train_until(cfg, tmp_path / "whole", resume=seed < 0)
    resumed = train_until(cfg, tmp_path / "stopped", resume=True)
    assert not differing(whole.model.state_dict(), resumed.model.state_dict())
    momenta = [t.optimizer.state_dict()["state"] for t in (whole, resumed)]
    for a, b in zip(*(m.values() for m in momenta)):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    other = train_until(cfg, tmp_path / "other")
    same = not differing(other.model.state_dict(), whole.model.state_dict())
    assert same == (seed >= 0)


def test_two_processes_train_in_parts_to_the_weights_of_one_piece(teacher_files, shapes, tmp_path):
    # at a constant learning rate another length is no other training
    constant = {"SOLVER__STEPS": (), "SOLVER__WARMUP_ITERS": 0}
    cfg = distilling(tiny_config(SEED=4, SOLVER__IMS_PER_BATCH=4, **constant), teacher_files)
    processes = ["--num-gpus", 2, "--dist-url", "auto"]

    def train(name, length, *flags):
        config = process_config(cfg, tmp_path, name, test=("skd_shapes_val",))
        args = ["--config-file", config, *processes, *flags, "SOLVER.MAX_ITER", length]
        printed = run_script("train_net.py", *args, datasets=shapes)
        state = torch.load(tmp_path / name / "model_final.pth")
        return printed, state["iteration"], state["model"]

    _, _, whole = train("whole", 3)
    train("parts", 2)
    printed, iteration, resumed = train("parts", 3, "--resume")
    assert "Starting training from iteration 2" in printed and iteration == 2
    assert not differing(whole, resumed)
    assert {"log.txt", "log.txt.rank1"} <= set(os.listdir(tmp_path / "parts"))


KILL = """
losses = forward(self, inputs)
if calls == 5:
    os.kill(os.getpid(), 9)
return losses
"""


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
def test_kill_9_and_resume_give_the_very_weights(kind, teacher_files, shapes, tmp_path):
    """
    Killed in the middle of an iteration, with a worker that loads ahead, and resumed in another
    process: of RetinaNet's loss in TorchScript PyTorch computes the first call's gradient in
    another way, unless it is told not to.
    """
    plain = tiny_config(
        kind, SEED=4, SOLVER__MAX_ITER=6, SOLVER__CHECKPOINT_PERIOD=2, DATALOADER__NUM_WORKERS=1
    )
    cfg = distilling(plain, teacher_files, balance=True)
    killed = process_config(cfg, tmp_path, "killed")
    done = subprocess.run(
        [sys.executable, patched_forward(tmp_path, KILL), "--config-file", killed],
        env=environment(shapes), timeout=300,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "last_checkpoint").read_text() == "model_0000003.pth"
    printed = run_script("train_net.py", "--config-file", killed, "--resume", datasets=shapes)
    assert "Starting training from iteration 4" in printed
    resumed = torch.load(tmp_path / "killed" / "model_final.pth")["model"]
    # in a process of its own too: in this one other tests have run that loss already
    run_script(
        "train_net.py", "--config-file", process_config(cfg, tmp_path, "whole"), datasets=shapes
    )
    assert not differing(torch.load(tmp_path / "whole" / "model_final.pth")["model"], resumed)
    rows = [json.loads(line) for line in open(tmp_path / "killed" / "metrics.json")]
    assert rows[-1]["iteration"] == 5


def test_images_made_in_this_process_leave_gpus_their_seed(monkeypatch):
    """torch.manual_seed reseeds every GPU, and the state that is put back is the CPU's."""
    monkeypatch.setattr("torch.manual_seed", lambda seed: pytest.fail("reseeds GPUs"))
    state = torch.get_rng_state()
    with seeded(3, 4):
        first = torch.rand(3)
    with seeded(3, 4):
        assert first.equal(torch.rand(3))
    assert state.equal(torch.get_rng_state())
