"""The weights a run starts from."""

from typing import Any, Dict

from torch import nn

from ..modeling.load import DISTILLER_PREFIX
from ..runtime.checkpoint import SafeCheckpointer


class RunCheckpointer(SafeCheckpointer):
    """
    Refuses a file from which the model takes nothing: a training from random weights was not asked
    for. An empty name asks for it.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, key: str, **checkpointables: Any):
        """
        Args:
            model, save_dir, checkpointables: as for Detectron2's checkpointer.
            key: that names the file, for the error.
        """
        super().__init__(model, save_dir, **checkpointables)
        self._key = key

    def _load_model(self, checkpoint: Dict[str, Any]):
        names = list(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        # parameters only: loading makes up some buffers; and no file to start from has a distiller
        names_here = [name for name, _ in self.model.named_parameters()]
        wanted = {name for name in names_here if not name.startswith(DISTILLER_PREFIX)}
        if wanted and wanted <= set(incompatible.missing_keys):
            raise ValueError(
                f"{self._key} is '{self._path}', and the model takes none of its {len(names)} "
                f"tensors: no name and shape agrees (there '{next(iter(names), '')}', here "
                f"'{min(wanted)}'). Give weights of this model, or '' for random ones."
            )
        return incompatible
