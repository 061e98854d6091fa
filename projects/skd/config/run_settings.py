"""
Every setting of a run, each declared once: what it is called in a YAML config and in a LazyConfig,
what it may be, and what it is where a config does not say.

The declaration is all that a new setting needs: both forms are read by it, errors name its key, a
YAML config gets the key, and the student's own config is written without it. What the setting does
is up to who reads ``run.NAME``, see ``skd/engine``.
"""

import math
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from detectron2.config import CfgNode
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from ..distillers.settings import is_number, is_whole

YAML, LAZY = "yaml", "lazy"  # the forms of config
Rule = Callable[[Any], str]  # a value -> what it must be instead; "" for a good one


@dataclass(frozen=True)
class Setting:
    """
    Attributes:
        yaml, lazy: the key and the path; "" where a form has none.
        default: where a config does not say it; ``MISSING`` for an error.
        must: checked before a training, unless the value is None.
        added: the forms in which it is this project's, so that stock Detectron2 does not know it.
        learned: whether another value changes what is learned; a resumed run warns of it.
        convert: from what the config has.
    """

    yaml: str
    lazy: str
    default: Any
    must: Rule
    added: Tuple[str, ...]
    learned: bool
    convert: Callable[[Any], Any]
    name: str = ""

    def key(self, form: str) -> str:
        """What it is called in ``YAML`` or ``LAZY``."""
        return self.yaml if form == YAML else self.lazy


def _plain(value: Any) -> Any:
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    return list(value) if isinstance(value, tuple) else value


def _names(value: Any) -> Any:
    """A single name as a list; :func:`check_kinds` refuses what is not a name."""
    return [value] if isinstance(value, str) else _plain(value)


def _setting(
    yaml: str,
    lazy: str,
    default: Any = MISSING,
    must: Rule = lambda value: "",
    added: Tuple[str, ...] = (),
    learned: bool = False,
    convert: Callable[[Any], Any] = _plain,
) -> Any:
    setting = Setting(yaml, lazy, default, must, added, learned, convert)
    return field(metadata={"setting": setting})


# ------------------------------------------------------------------------------- what they may be
def _whole(least: int, further: str = "") -> Rule:
    words = ("a whole number above 0" if least else "a whole number, 0 or above") + further
    return lambda value: "" if is_whole(value, least) else words


def _positive(value: Any) -> str:
    return "" if is_number(value) and 0 < value < math.inf else "a number above 0"


def _shared(value: Any) -> str:
    world = comm.get_world_size()
    good = is_whole(value, 1) and value % world == 0
    return "" if good else f"a multiple of the number of processes, {world}"


def _decay(value: Any) -> str:
    good = is_number(value) and 0 <= value < 1
    return "" if good else "a number from 0 to below 1; 0 for no average"


def _one_of(*names: str) -> Rule:
    return lambda value: "" if value in names else f"one of {', '.join(names)}"


def _metric(value: Any) -> str:
    good = isinstance(value, str) and (not value or "/" in value)
    return "" if good else "TASK/RESULT, e.g. 'bbox/AP', or empty"


TRACKERS = ("wandb", "mlflow")


def _services(value: Any) -> str:
    good = isinstance(value, list) and set(value) <= set(TRACKERS)
    return "" if good else f"a list of {' and '.join(map(repr, TRACKERS))}"


def _expected(value: Any) -> str:
    good = isinstance(value, list) and all(map(_is_expected, value))
    return "" if good else "a list of [task, metric, value, tolerance], e.g. ['bbox', 'AP', 40, 1]"


def _is_expected(row: Any) -> bool:
    if not isinstance(row, (list, tuple)) or len(row) != 4:
        return False
    return all(isinstance(x, str) for x in row[:2]) and all(map(is_number, row[2:]))


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "text"


def _seed(value: Any) -> str:
    if not is_whole(value, -math.inf):
        return "a whole number"
    most = 2**32 - comm.get_world_size()  # of NumPy; each process has its own
    return "" if value <= most else f"at most {most}; below 0 for another one each time"


def _list_of_names(value: Any) -> str:
    good = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return "" if good else "a name, or a list of them"


def _dataset(value: Any) -> str:
    return "" if value else "a dataset's name"


# --------------------------------------------------------------------------------- the declaration
@dataclass
class RunSettings:
    """What a config says of a run, as :func:`read` takes it from either form."""

    # The folder of the run.
    output_dir: str = _setting("OUTPUT_DIR", "train.output_dir")
    # Weights to start from: a file, a URL or a name of Detectron2's catalog; "" for random weights.
    weights: str = _setting("MODEL.WEIGHTS", "train.init_checkpoint")
    device: str = _setting("MODEL.DEVICE", "train.device")
    # Negative: one that all processes draw together.
    seed: int = _setting("SEED", "train.seed", -1, learned=True)

    max_iter: int = _setting("SOLVER.MAX_ITER", "train.max_iter", must=_whole(1))
    learning_rate: Optional[float] = _setting(
        "SOLVER.BASE_LR", "optimizer.lr", None, _positive, learned=True
    )
    # Over all processes.
    images_per_batch: Optional[int] = _setting(
        "SOLVER.IMS_PER_BATCH", "dataloader.train.total_batch_size", None, _shared, learned=True
    )
    # Gradient accumulation steps: each batch is taken in so many micro-batches for one optimizer
    # step, for GPUs that do not hold all of it. Must divide a process's share of the images. Done
    # by SKDTrainer; other trainers do not know the key.
    accumulate: int = _setting(
        "SOLVER.ACCUMULATE", "train.accumulate", 1, _whole(1), added=(YAML, LAZY), learned=True
    )
    # Max non-finite batches to skip (their loss or gradient has NaN or infinity), instead of
    # stopping at the first. Done by SKDTrainer too.
    skip_non_finite: int = _setting(
        "SOLVER.SKIP_NON_FINITE", "train.skip_non_finite", 0, _whole(0), added=(YAML, LAZY)
    )
    # Mixed precision; on CPUs in bf16 only.
    amp: bool = _setting("SOLVER.AMP.ENABLED", "train.amp.enabled", False, learned=True)
    # What it computes in.
    amp_precision: str = _setting(
        "SOLVER.AMP.PRECISION", "train.amp.precision", "fp16", _one_of("fp16", "bf16"),
        added=(YAML, LAZY), learned=True,
    )  # fmt: skip

    # Iterations from one checkpoint to the next; the same for the periods below.
    checkpoint_period: int = _setting(
        "SOLVER.CHECKPOINT_PERIOD", "train.checkpointer.period", must=_whole(1)
    )
    eval_period: int = _setting(
        "TEST.EVAL_PERIOD", "train.eval_period", must=_whole(0, "; 0 for never")
    )
    log_period: int = _setting("", "train.log_period", 20, _whole(1))
    # Pictures of attention, in TensorBoard.
    vis_period: int = _setting(
        "VIS_PERIOD", "train.vis_period", 0, _whole(0, "; 0 for never"), added=(LAZY,)
    )
    # Also keep the checkpoint that is best by this result of the evaluations, e.g. "bbox/AP" or
    # "segm/AP", as model_best.pth. Chosen on the test sets, so report its result on other images.
    # Done by SKDTrainer too.
    best_metric: str = _setting(
        "SOLVER.BEST_METRIC", "train.best_metric", "", _metric, added=(YAML, LAZY)
    )
    # End the training when BEST_METRIC has not become better in so many evaluations. 0: never. With
    # a learning rate that falls in steps, give it more evaluations than there are between two.
    # Done by SKDTrainer too.
    patience: int = _setting(
        "SOLVER.PATIENCE", "train.patience", 0, _whole(0, "; 0 for never"), added=(YAML, LAZY)
    )
    # Keep an exponential moving average of the student's weights, of this decay, e.g. 0.999 for
    # some thousand iterations: evaluated beside the student (results "bbox_EMA/AP"), written as
    # model_ema.pth at the end. 0: none. Done by SKDTrainer too.
    ema_decay: float = _setting(
        "SOLVER.EMA_DECAY", "train.ema_decay", 0.0, _decay, added=(YAML, LAZY)
    )
    # Before the training, and at each evaluation, say how well teacher and student find the objects
    # of so many images of the first test set, and warn of one that is no better. 0: do not.
    evaluate_teacher: int = _setting(
        "MODEL.TEACHER.EVALUATE", "train.evaluate_teacher", 0, _whole(0), added=(YAML, LAZY)
    )
    # Services that get the log's values too: "wandb" (Weights & Biases), "mlflow". Done by
    # SKDTrainer too.
    trackers: List[str] = _setting(
        "SOLVER.TRACKERS", "train.trackers", (), _services, added=(YAML, LAZY)
    )
    # Results to compare the evaluation's with: [[task, metric, value, tolerance], ...].
    expected: List[Any] = _setting(
        "TEST.EXPECTED_RESULTS", "train.expected_results", (), _expected, added=(LAZY,)
    )

    num_workers: Optional[int] = _setting(
        "DATALOADER.NUM_WORKERS", "dataloader.train.num_workers", None, _whole(0)
    )
    # None: a loader of the user's own, in a LazyConfig.
    train_sets: Optional[List[str]] = _setting(
        "DATASETS.TRAIN", "dataloader.train.dataset.names", None, _dataset, learned=True,
        convert=_names,
    )  # fmt: skip
    test_sets: Optional[List[str]] = _setting(
        "DATASETS.TEST", "dataloader.test.dataset.names", None, convert=_names
    )
    # Learn from images without labels too: folders, or names of registered datasets, whose labels
    # are not read (--register-coco takes a file without annotations). In each step the distiller,
    # not the detector, sees some of them. Done by SKDTrainer; docs/unlabelled.md.
    unlabelled: List[str] = _setting(
        "DATASETS.UNLABELLED", "dataloader.unlabelled", (), added=(YAML, LAZY), learned=True,
        convert=_names,
    )  # fmt: skip
    # How many in a step, over all processes; 0 for as many as labelled ones.
    unlabelled_per_batch: int = _setting(
        "DATASETS.UNLABELLED_PER_BATCH", "dataloader.unlabelled_per_batch", 0, _whole(0),
        added=(YAML, LAZY), learned=True,
    )  # fmt: skip
    # How many that cannot be read are left out, each with a warning, in each process.
    unlabelled_skip: int = _setting(
        "DATASETS.UNLABELLED_SKIP", "dataloader.unlabelled_skip", 10, _whole(0), added=(YAML, LAZY)
    )


@lru_cache(maxsize=None)
def settings() -> Tuple[Setting, ...]:
    """All of them, with their names."""
    declared = [(f.name, f.metadata["setting"]) for f in fields(RunSettings)]
    return tuple(replace(setting, name=name) for name, setting in declared)


def keys_of(form: str) -> Dict[str, str]:
    """Keys in ``YAML``, or paths in ``LAZY``, by the settings' names."""
    return {s.name: s.key(form) for s in settings() if s.key(form)}


def lazy_paths() -> Dict[str, str]:
    """A LazyConfig's paths by a YAML config's keys."""
    return {s.yaml: s.lazy for s in settings() if s.yaml and s.lazy}


# ------------------------------------------------------------------------------------- in a config
Config = Union[CfgNode, DictConfig]


def form_name(cfg: Config) -> str:
    """``YAML`` or ``LAZY``."""
    return YAML if isinstance(cfg, CfgNode) else LAZY


def select(cfg: Config, key: str) -> Any:
    """What a config has under a dotted key; None for nothing, or below what is no section."""
    for part in key.split("."):
        cfg = cfg.get(part) if isinstance(cfg, (CfgNode, DictConfig)) else None
    return cfg


def as_mapping(cfg: Config) -> Mapping[str, Any]:
    """A config of either form, nested."""
    return cfg if isinstance(cfg, CfgNode) else OmegaConf.to_container(cfg)


def read(cfg: Config) -> Dict[str, Any]:
    """
    Every setting's value in a config of either form, by name.

    Raises:
        ValueError: one that must be there is not.
    """
    return {setting.name: _read(cfg, setting) for setting in settings()}


def value_of(cfg: Config, name: str) -> Any:
    """One setting's value, see :func:`read`."""
    return next(_read(cfg, setting) for setting in settings() if setting.name == name)


# of what is read before the rules of all settings are asked
_KINDS = {
    "output_dir": _text, "weights": _text, "seed": _seed, "train_sets": _list_of_names,
    "test_sets": _list_of_names, "unlabelled": _list_of_names,
}  # fmt: skip


def check_kinds(cfg: Config) -> None:
    """
    Raises:
        ValueError: a folder, a file, a seed or names of another kind of value; names the key.
    """
    keys = keys_of(form_name(cfg))
    for name, rule in _KINDS.items():
        value = value_of(cfg, name)
        expected = rule(value) if value is not None else ""
        if expected:
            raise ValueError(f"{keys[name]} is {value!r}; it must be {expected}.")


def _read(cfg: Config, setting: Setting) -> Any:
    key = setting.key(form_name(cfg))
    value = select(cfg, key) if key else None
    if value is not None:
        return setting.convert(value)
    if setting.default is MISSING:
        raise ValueError(f"{key} is missing; the config of a run must say it.")
    return _default(setting)


def _default(setting: Setting) -> Any:
    return _plain(setting.default)


def extend(cfg: Config, name: str, values: Sequence[str]) -> None:
    """Add to a setting that is a list, in place."""
    longer = [*value_of(cfg, name), *values]
    put(cfg, name, longer if isinstance(cfg, DictConfig) else tuple(longer))


def put(cfg: Config, name: str, value: Any) -> None:
    """Change one setting, in place."""
    key = next(s.key(form_name(cfg)) for s in settings() if s.name == name)
    if isinstance(cfg, DictConfig):
        OmegaConf.update(cfg, key, value, force_add=True)
    else:
        node, _, last = key.rpartition(".")
        (select(cfg, node) if node else cfg)[last] = value


def declared(cfg: CfgNode) -> List[str]:
    """The keys that a config has already, of those that :func:`declare` adds."""
    added = [setting.yaml.rpartition(".") for setting in settings() if YAML in setting.added]
    return [f"{node}.{name}" for node, _, name in added if name in (select(cfg, node) or ())]


def declare(cfg: CfgNode) -> None:
    """Add the settings that Detectron2's YAML configs have not, in place."""
    for setting in settings():
        if YAML in setting.added:
            node, name = setting.yaml.rsplit(".", 1)
            select(cfg, node)[name] = setting.default


def changed(cfg: Config) -> Dict[str, Any]:
    """Settings that stock Detectron2 does not know and that are not at their default, by key."""
    form = form_name(cfg)
    added = [setting for setting in settings() if form in setting.added]
    values = [(setting, _read(cfg, setting)) for setting in added]
    return {s.key(form): value for s, value in values if value != _default(s)}


def remove_added(cfg: Config, keep: bool = False) -> None:
    """
    Take out what stock Detectron2 does not know, in place.

    Args:
        keep: leave what is not as by default.
    """
    form = form_name(cfg)
    for setting in settings():
        node, _, name = setting.key(form).rpartition(".")
        parent = select(cfg, node) if form in setting.added else None
        if parent and name in parent and not (keep and _read(cfg, setting) != _default(setting)):
            parent.pop(name)


# Keys of either form, by how they begin, that change nothing of what is learned, beside the
# settings above.
_NOT_LEARNED = (
    "VERSION", "CUDNN_BENCHMARK", "TEST.", "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST",
    "train.checkpointer", "dataloader.test", "dataloader.evaluator", "optimizer.params.model",
)  # fmt: skip
_LEARNED = ("TEST.PRECISE_BN",)  # all the same: it takes new running statistics


def is_learned(key: str) -> bool:
    """Whether another value of a key, of either form, changes what is learned."""
    if key.startswith(_LEARNED):
        return True
    unlearned = [k for s in settings() if not s.learned for k in (s.yaml, s.lazy) if k]
    return not key.startswith((*_NOT_LEARNED, *unlearned))
