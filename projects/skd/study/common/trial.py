"""A run that a command looks at for a few iterations: it is never trained to its end or written."""

from dataclasses import replace

from torch import nn

from ...config import Config, form_of, run_settings
from ...data import check_datasets
from ...engine.run import Run, check_device, check_registered
from ...engine.weights import RunCheckpointer
from ...modeling.student_class import balance_of

# A balance of which every iteration is one as between the warm-up and the end of the teacher; until
# it is told the training's length, a LazyConfig's may not know it.
_STEADY = {"warmup": 0, "ramp": 0, "decay": "none", "until": None}


def settle(cfg: Config) -> None:
    """
    Of a config that distils, in place: images are loaded in this process, every iteration distils,
    as between the warm-up and the end of the teacher, the run itself looks at no teacher, and a
    seed left to chance is 0, so that a command says the same twice.
    """
    form = form_of(cfg)
    form.thaw(cfg)
    form.load_in_process(cfg)
    form.distil_always(cfg, _STEADY)
    run_settings.put(cfg, "evaluate_teacher", 0)
    run_settings.put(cfg, "seed", max(run_settings.value_of(cfg, "seed"), 0))


def check_trial(run: Run) -> None:
    """
    Raises:
        ValueError: no data, or a device that is not there, before anything is built.
    """
    key, names = run.keys["train_sets"], run.train_sets
    if names is not None and not names:
        raise ValueError(f"{key} is empty; it must name the dataset to train on.")
    check_registered(key, names)
    check_device(str(run.device), run.keys["device"])
    check_datasets(run.cfg)


def starting_model(run: Run) -> nn.Module:
    """The model of a run whose config is settled, as its training starts, with its weights."""
    model = run.build_model()
    balance = balance_of(model)
    if balance is not None:  # also one that a LazyConfig leaves to the model
        balance.settings = replace(balance.settings, **{**_STEADY, "until": 1.0})
    if run.weights:
        RunCheckpointer(model, key=run.keys["weights"]).load(run.weights)
    return model.train()
