"""Weights & Biases and MLflow, beside TensorBoard; neither is imported unless a run names it."""

import importlib
import json
import os
from typing import Any, Callable, Dict, Mapping

from detectron2.utils.events import EventWriter, get_event_storage

WINDOW = 20  # iterations that losses are smoothed over, as in Detectron2's writers


class _Tracker(EventWriter):
    """
    What Detectron2's JSONWriter writes, for a service. The service's run begins with the first
    values; its name is noted in the folder, so that a resumed training goes on in it.
    """

    module = ""  # of the service

    def __init__(self, folder: str, config: Mapping[str, Any], resumed: Callable[[], bool]):
        """
        Args:
            folder: of the run, a local one.
            config: the run's, for the service to show.
            resumed: whether this training goes on with one before; asked when it has begun.
        """
        self._folder, self._resumed = folder, resumed
        self._config = json.loads(json.dumps(config, default=str))
        self._service: Any = None
        self._written = -1

    def write(self) -> None:
        latest = get_event_storage().latest_with_smoothing_hint(WINDOW)
        new = {name: pair for name, pair in latest.items() if pair[1] > self._written}
        if new and self._service is None:
            self._begin()
        for step in sorted({iteration for _, iteration in new.values()}):
            self._send({k: float(v) for k, (v, i) in new.items() if i == step}, step)
            self._written = step

    def _begin(self) -> None:
        self._service = importlib.import_module(self.module)
        os.makedirs(self._folder, exist_ok=True)
        path = os.path.join(self._folder, f"{self.module}_run.txt")
        before = None
        if self._resumed() and os.path.exists(path):
            with open(path) as f:
                before = f.read().strip()
        name = self._start(os.path.basename(os.path.abspath(self._folder)), before)
        with open(path, "w") as f:
            f.write(name)

    def _start(self, title: str, before: Any) -> str:
        """Begin a run, or go on with the one named ``before``: its name."""
        raise NotImplementedError

    def _send(self, values: Dict[str, float], step: int) -> None:
        raise NotImplementedError


class WandbWriter(_Tracker):
    """Weights & Biases, which reads WANDB_PROJECT, WANDB_MODE and the like itself."""

    module = "wandb"

    def _start(self, title: str, before: Any) -> str:
        self._run = self._service.init(
            dir=self._folder, config=self._config, name=title, id=before, resume="allow"
        )
        return self._run.id

    def _send(self, values: Dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        if self._service is not None:
            self._run.finish()


class MlflowWriter(_Tracker):
    """MLflow, which reads MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the like itself."""

    module = "mlflow"

    def _start(self, title: str, before: Any) -> str:
        run = self._service.start_run(run_id=before, run_name=None if before else title)
        if before is None:
            self._service.log_dict(self._config, "config.json")
        return run.info.run_id

    def _send(self, values: Dict[str, float], step: int) -> None:
        self._service.log_metrics(values, step=step)

    def close(self) -> None:
        if self._service is not None:
            self._service.end_run()


TRACKERS = {kind.module: kind for kind in (WandbWriter, MlflowWriter)}
