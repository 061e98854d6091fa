"""The frozen teacher: found, built, loaded in full or refused, and run without a trace."""

import difflib
import glob
import logging
import os
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, configurable, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from detectron2.utils.file_io import PathManager
from omegaconf import OmegaConf
from torch import nn

from ..config import is_lazy_file, lazy, read_config, student_config
from ..runtime.checkpoint import SafeCheckpointer
from .features import FeatureTap, get_feature_module
from .inherit import State, components
from .teacher_speed import PRECISIONS, fold_batch_norm

logger = logging.getLogger(__name__)

DISTILLER_PREFIX = "distiller."  # keys a distilled student's checkpoint may have on top


class FrozenTeacher(nn.Module):
    """
    The backbone of a trained detector, never trained and always in eval mode.

    It normalises and pads images as its own detector does, whatever the student does.
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        weights: str,
        input_format: Optional[str] = None,
        features: str = "backbone",
        random_weights: bool = False,
        precision: str = "fp32",
        fold_bn: bool = True,
        channels_last: bool = True,
        compile: bool = False,
        side_stream: bool = False,
    ):
        """
        Args:
            model: a detector with ``backbone``, ``pixel_mean`` and ``pixel_std``.
            weights: its checkpoint, path or URL. Must match ``model`` in full.
            input_format: colour order the detector was trained with, "BGR" or "RGB"; by default
                ``model.input_format``.
            features: the module of ``model.backbone`` to read feature maps from.
            random_weights: keep the model untrained; ``weights`` must be empty.
            precision, fold_bn, channels_last, compile, side_stream: see ``MODEL.TEACHER``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file does not fit the model, or an argument is wrong; says which.
        """
        super().__init__()
        if random_weights:
            if weights:
                raise ValueError(
                    "MODEL.TEACHER.RANDOM_WEIGHTS is True, but MODEL.TEACHER.WEIGHTS names "
                    f"'{weights}'. Keep one of the two."
                )
            logger.warning(
                "THE TEACHER IS UNTRAINED (MODEL.TEACHER.RANDOM_WEIGHTS): "
                "the student learns nothing of use from it."
            )
        else:
            load_in_full(model, weights)
        input_format = input_format or getattr(model, "input_format", None)
        if input_format not in ("BGR", "RGB"):
            raise ValueError(
                f"The teacher's input_format is {input_format!r}; it must be 'BGR' or 'RGB'."
            )
        self.input_format = input_format
        self.weights = weights
        self.backbone = model.backbone
        self._components = components(model)
        get_feature_module(self, features, "MODEL.TEACHER.FEATURES")  # or an error
        self.features = features
        self.register_buffer("pixel_mean", model.pixel_mean.clone(), persistent=False)
        self.register_buffer("pixel_std", model.pixel_std.clone(), persistent=False)
        self.requires_grad_(False)
        self.eval()
        if precision not in PRECISIONS:
            raise ValueError(
                f"MODEL.TEACHER.PRECISION is {precision!r}; it must be one of "
                f"{', '.join(map(repr, PRECISIONS))}."
            )
        if compile and features != "backbone":
            raise ValueError(
                f"MODEL.TEACHER.COMPILE needs MODEL.TEACHER.FEATURES 'backbone', not '{features}'."
            )
        if fold_bn:
            fold_batch_norm(self.backbone)
        self.backbone.to(dtype=PRECISIONS[precision])
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        # past nn.Module.__setattr__, which would register the backbone a second time
        run = torch.compile(self.backbone, dynamic=True) if compile else self.backbone
        object.__setattr__(self, "_run", run)
        self.side_stream = side_stream
        self._stream: Optional["torch.cuda.Stream"] = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        teacher = cfg.MODEL.TEACHER
        return _teacher_args(
            teacher.CONFIG_FILE,
            weights=teacher.WEIGHTS,
            opts=teacher.OPTS,
            from_yaml=True,
            features=teacher.FEATURES,
            random_weights=teacher.RANDOM_WEIGHTS,
            precision=teacher.PRECISION,
            fold_bn=teacher.FOLD_BN,
            channels_last=teacher.CHANNELS_LAST,
            compile=teacher.COMPILE,
            side_stream=teacher.SIDE_STREAM,
        )

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stays in eval mode whatever is asked."""
        return super().train(False)

    def take_components(self) -> Dict[str, State]:
        """What a student may inherit, by component. Once: afterwards the heads are gone."""
        taken, self._components = self._components, {}
        return taken

    def output_shape(self) -> Dict[str, ShapeSpec]:
        return self.get_submodule(self.features).output_shape()

    @torch.no_grad()
    def forward(
        self, batched_inputs: List[Dict[str, Any]], image_format: str
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            batched_inputs: Detectron2's standard inputs; only ``image`` (C, H, W) is read.
            image_format: colour order of these images, "BGR" or "RGB".

        Returns:
            Feature maps (N, C, H, W) by level name.

        Raises:
            ValueError: an image is larger than the square the teacher pads to.
        """
        self._check_square(batched_inputs)
        images = [x["image"].to(self.pixel_mean.device) for x in batched_inputs]
        if image_format != self.input_format:
            # before the mean is subtracted: it is in the order of the teacher's channels
            images = [x.flip(0) for x in images]
        images = ImageList.from_tensors(
            [(x - self.pixel_mean) / self.pixel_std for x in images],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
        weight = next(self.backbone.parameters(), images.tensor)
        tensor = images.tensor.to(weight.dtype)
        if self.features == "backbone":
            return self._run(tensor)
        with FeatureTap(self.get_submodule(self.features)) as tap:
            self.backbone(tensor)
        return tap.features

    def start(
        self, batched_inputs: List[Dict[str, Any]], image_format: str
    ) -> Callable[[], Dict[str, torch.Tensor]]:
        """
        Begin :meth:`forward` on a CUDA stream of the teacher's own; without ``side_stream`` or
        without a GPU run it at once: its working memory is then free again before the student's
        activations are there.

        Returns:
            A function that waits for the feature maps and returns them.
        """
        if not self.side_stream or self.pixel_mean.device.type != "cuda":
            features = self(batched_inputs, image_format)
            return lambda: features
        current = torch.cuda.current_stream(self.pixel_mean.device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.pixel_mean.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            features = self(batched_inputs, image_format)

        def wait():
            current.wait_stream(self._stream)
            for x in features.values():
                x.record_stream(current)  # its memory is in use there until then
            return features

        return wait

    def _check_square(self, batched_inputs: List[Dict[str, Any]]) -> None:
        square = self.backbone.padding_constraints.get("square_size", 0)
        largest = max(max(x["image"].shape[-2:]) for x in batched_inputs)
        if 0 < square < largest:
            raise ValueError(
                f"An image has a side of {largest} pixels after resizing, and the teacher pads "
                f"its images to squares of {square}. Make the student's training images no larger "
                f"than that (INPUT.MAX_SIZE_TRAIN {square}), or the teacher's square larger "
                f"(backbone.square_pad)."
            )


def build_teacher(config_file: str, **kwargs) -> FrozenTeacher:
    """
    Build a teacher from a file or a model-zoo name; for LazyConfig and for Python.

    Args:
        config_file: see ``MODEL.TEACHER.CONFIG_FILE``.
        kwargs: ``weights``, ``opts``, ``features``, ``random_weights``, ``precision``,
            ``fold_bn``, ``channels_last``, ``compile``, ``side_stream``, as the config keys.
    """
    with torch.random.fork_rng(devices=[]):  # the student's random numbers are its own
        return FrozenTeacher(**_teacher_args(config_file, **kwargs))


def _teacher_args(
    config_file: str,
    weights: str = "",
    opts: Sequence[str] = (),
    random_weights: bool = False,
    from_yaml: bool = False,
    **kwargs,
) -> Dict[str, Any]:
    path = find_config(config_file)
    if not weights and not random_weights:
        weights = _zoo_weights(config_file)
    if weights:
        _check_exists(weights)  # before the model is built, which takes long
    cfg = _load_config(config_file, path, list(opts), from_yaml)
    try:
        if isinstance(cfg, CfgNode):
            model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
            input_format = cfg.INPUT.FORMAT
        else:
            model = instantiate(cfg.model)
            input_format = getattr(model, "input_format", None) or OmegaConf.select(
                cfg, "dataloader.train.mapper.image_format"
            )
    except ImportError as error:
        raise ImportError(
            f"The teacher '{config_file}' needs what is not installed here: {error}"
        ) from error
    return {
        "model": model,
        "weights": weights,
        "input_format": input_format,
        "random_weights": random_weights,
        **kwargs,
    }


def _zoo_folder() -> str:
    return os.path.join(os.path.dirname(model_zoo.__file__), "configs")


def zoo_names() -> List[str]:
    """Names of all configs in Detectron2's model zoo."""
    root = _zoo_folder()
    files = glob.glob(os.path.join(root, "**", "*"), recursive=True)
    return sorted(os.path.relpath(f, root) for f in files if f.endswith((".yaml", ".py")))


def find_config(name: str) -> str:
    """
    Args:
        name: a file, or a name in Detectron2's model zoo.

    Returns:
        Path of the config file.

    Raises:
        FileNotFoundError: neither; names the closest ones in the zoo.
    """
    if not name:
        raise ValueError(
            "MODEL.TEACHER.CONFIG_FILE is empty: give a config file or a model-zoo name, e.g. "
            "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml."
        )
    if PathManager.isfile(name):
        return PathManager.get_local_path(name)
    names = zoo_names()
    if name in names:
        return os.path.join(_zoo_folder(), name)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.3)
    raise FileNotFoundError(
        f"Unknown teacher '{name}': not a file here, and not in Detectron2's model zoo. "
        f"Closest there: {', '.join(close) or 'none'}."
    )


def _zoo_weights(name: str) -> str:
    try:
        return model_zoo.get_checkpoint_url(name)
    except RuntimeError:
        raise ValueError(
            f"MODEL.TEACHER.WEIGHTS is empty, and the model zoo has no checkpoint for '{name}'. "
            "Give the teacher's checkpoint (--teacher-weights)."
        ) from None


def _check_exists(weights: str) -> None:
    # names with a scheme (https://, detectron2://) are fetched, and checked, by the loader
    if "://" not in weights and not os.path.isfile(weights):
        raise FileNotFoundError(
            f"Teacher checkpoint '{weights}' (MODEL.TEACHER.WEIGHTS) not found."
        )


def _load_config(name: str, path: str, opts: List[str], from_yaml: bool) -> Union[CfgNode, Any]:
    if is_lazy_file(path):
        if not from_yaml:
            return lazy.override(lazy.read(path), opts)
        lazy.check_allowed(name, path, "MODEL.TEACHER.CONFIG_FILE")
        return lazy.override_values(lazy.read(path), opts, "MODEL.TEACHER.OPTS")
    try:
        cfg = read_config(path)  # a student of this project may be a teacher in turn
        cfg.merge_from_list(opts)
    except (AssertionError, KeyError, ValueError) as error:  # what yacs raises
        raise ValueError(
            f"The teacher's config '{path}' with OPTS {opts} cannot be read: {error}"
        ) from error
    return student_config(cfg)


class _StrictCheckpointer(SafeCheckpointer):
    """Loads what the stock checkpointer loads, and refuses where that one warns."""

    def _log_incompatible_keys(self, incompatible) -> None:
        misshapen = [k for k, _, _ in incompatible.incorrect_shapes]
        problems = {
            "missing in the checkpoint": [
                k for k in incompatible.missing_keys if k not in misshapen
            ],
            "unexpected in the checkpoint": [
                k for k in incompatible.unexpected_keys if not k.startswith(DISTILLER_PREFIX)
            ],
            "of another shape": [
                f"{k}: {tuple(there)} in the checkpoint, {tuple(here)} in the model"
                for k, there, here in incompatible.incorrect_shapes
            ],
        }
        lines = [
            f"  {len(keys)} {what}:\n" + "\n".join(f"    {k}" for k in keys)
            for what, keys in problems.items()
            if keys
        ]
        if lines:
            raise ValueError("\n".join(lines))


def load_in_full(model: nn.Module, weights: str) -> None:
    """
    Load a checkpoint of any kind Detectron2 reads, every key of it into every key of the model.

    Raises:
        FileNotFoundError: no such file, or a URL that cannot be fetched.
        ValueError: the two do not match; names every missing, unexpected and misshapen key.
    """
    _check_exists(weights)
    try:
        _StrictCheckpointer(model).load(weights)
    except OSError as error:
        raise FileNotFoundError(
            f"Teacher checkpoint '{weights}' (MODEL.TEACHER.WEIGHTS) cannot be read: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"The teacher's checkpoint '{weights}' does not match its model:\n{error}\n"
            "Check that MODEL.TEACHER.CONFIG_FILE and MODEL.TEACHER.WEIGHTS belong together."
        ) from None
