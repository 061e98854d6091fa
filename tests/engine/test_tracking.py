"""SOLVER.TRACKERS: what each service is given, by the service's own offline mode."""

import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from skd import student_config
from skd.config import run_settings
from skd.engine import SKDTrainer
from skd.engine.tracking import TRACKERS, _Tracker
from tests.helpers import tiny_config
from tests.processes import environment


class Listed(_Tracker):
    """A service that lists what it is sent."""

    module = "json"
    runs = 0

    def _start(self, title, before):
        Listed.runs += before is None
        self.sent, self.name = [], before or f"{title}{Listed.runs}"
        return self.name

    def _send(self, values, step):
        self.sent.append((step, values))


def written(folder, resumed, steps):
    writer = Listed(str(folder), {"SEED": 1}, lambda: resumed)
    with EventStorage(0) as storage:
        writer.write()  # nothing yet
        for step in steps:
            storage.iter = step
            storage.put_scalar("loss", 2.0 * step, smoothing_hint=False)
            if step % 2:
                storage.put_scalar("bbox/AP", 10.0 * step, smoothing_hint=False)
            writer.write()
            writer.write()  # what is written is not written again
    return writer


def test_every_value_is_sent_once_and_a_resume_goes_on_in_its_run(tmp_path):
    first = written(tmp_path / "mine", False, [0, 1])
    assert first.sent == [(0, {"loss": 0.0}), (1, {"loss": 2.0, "bbox/AP": 10.0})]
    assert written(tmp_path / "mine", True, [2]).name == first.name
    assert written(tmp_path / "mine", False, [2]).name != first.name


@pytest.mark.parametrize(
    "value,message",
    [
        (["neptune"], r"SOLVER.TRACKERS is \['neptune'\]; it must be a list of 'wandb' and"),
        (["wandb"], "SOLVER.TRACKERS names wandb, which is not installed: pip install wandb"),
    ],
)
def test_an_unknown_or_missing_service_is_named_at_the_start(value, message, shapes, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [])  # nothing more can be found
    monkeypatch.setattr(sys, "path", [])
    for name in list(sys.modules):
        if name.split(".")[0] in TRACKERS:
            monkeypatch.delitem(sys.modules, name)
    cfg = tiny_config()
    cfg.SOLVER.TRACKERS = value
    with pytest.raises(ValueError, match=message):
        SKDTrainer(cfg)
    assert "TRACKERS" not in student_config(cfg).dump()


def test_a_trainer_makes_them_and_knows_whether_it_goes_on(tmp_path):
    names = list(TRACKERS)
    run = SimpleNamespace(cfg=tiny_config(SEED=7), output_dir=str(tmp_path), trackers=names)
    trainer = SimpleNamespace(run=run, start_iter=0, max_iter=5)
    *_, wandb, mlflow = SKDTrainer.build_writers(trainer)
    assert (type(wandb), type(mlflow)) == tuple(TRACKERS.values())
    assert tuple(TRACKERS) == run_settings.TRACKERS
    assert wandb._config["SEED"] == 7 and not wandb._resumed()
    trainer.start_iter = 3
    assert mlflow._resumed()


PROGRAM = """
import sys
from skd.engine.tracking import TRACKERS
from detectron2.utils.events import EventStorage
assert not {{"wandb", "mlflow"}} & set(sys.modules)
for resumed in (False, True):
    writer = TRACKERS[{name!r}]({folder!r}, {{"SEED": 1, "names": ("a", "b")}}, lambda: resumed)
    with EventStorage(0) as storage:
        for step in (2 * resumed, 2 * resumed + 1):
            storage.iter = step
            storage.put_scalar("loss", 1.0 / (step + 1))
            writer.write()
    writer.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TRACKERS))
def test_the_service_takes_it_offline(name, tmp_path):
    pytest.importorskip(name)
    folder = tmp_path / "run"
    offline = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name=name, folder=str(folder))],
        env={**environment(tmp_path), **offline}, cwd=tmp_path, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    run = (folder / f"{name}_run.txt").read_text()
    if name == "wandb":
        files = list(folder.glob(f"wandb/offline-run-*-{run}/run-{run}.wandb"))
        assert files and all(b"loss" in file.read_bytes() for file in files)
    else:
        rows = sqlite3.connect(tmp_path / "mlflow.db").execute("select run_uuid, step from metrics")
        assert sorted(rows) == [(run, step) for step in range(4)]
