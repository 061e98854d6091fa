"""The best checkpoint of a run."""

from typing import Any, Dict

from detectron2.engine import hooks


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's, which after a resume still knows the best result up to then."""

    def state_dict(self) -> Dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]
