"""What a teacher finds on the student's own images, as it is configured and otherwise."""

import contextlib
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from ...config import Config, form_of, student_config
from ...config.naming import called
from ...config.run_settings import form_name, keys_of, select, value_of
from ...evaluation import Quality, class_agnostic_quality, detect, unseen_classes
from ...modeling.build_detector import Detector, build_detector, build_model_of
from ...modeling.load import load_in_full
from ...modeling.teacher import teacher_source
from ...runtime.words import shown
from .pooled import pooled_notes
from .verdict import Finding, Verdict

# How much better another way to read the images must be to say that the configured one is wrong, in
# points of AP and as a factor. Detectors hardly mind swapped colors, and of the normalizations some
# are nearly the same.
BETTER_COLORS, BETTER_NORMALIZATION = (1.0, 1.03), (3.0, 1.15)
# Below this AP50 a teacher finds nothing.
NOTHING = 1.0
# A teacher should be better than its student by so many points of AP50.
WORTH_LEARNING_FROM = 4.0
# Normalizations in use, as (mean, std) in the order of the image's channels.
NORMALIZATIONS: Dict[str, Tuple[Sequence[float], Sequence[float]]] = {
    "Caffe2's, BGR": ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
    "torchvision's, BGR": ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),
    "torchvision's, RGB": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "to [-1, 1]": ((127.5,) * 3, (127.5,) * 3),
    "to [0, 1]": ((0.0,) * 3, (255.0,) * 3),
    "none": ((0.0,) * 3, (1.0,) * 3),
}


def examine_teacher(cfg: Config, images: int, student_weights: str, verdict: Verdict) -> None:
    """Add what the teacher finds on ``images`` images to a verdict; see :func:`examine`."""
    source = teacher_source(cfg)
    if source is None:
        verdict.notes.append(
            "what the teacher finds was not looked at: model.teacher is not made by "
            "skd.build_teacher, and only of that the whole detector is known."
        )
        return
    dataset, records = _annotated(cfg, verdict)
    records = records[:images]
    mapper, device = form_of(cfg).test_mapper(cfg), value_of(cfg, "device")
    inputs = [mapper(record) for record in records]
    teacher = build_detector(source)
    teacher.model.to(device)
    flip = teacher.input_format != (form_of(cfg).image_format(cfg) or "BGR")

    def look(flip: bool = flip) -> Quality:
        return class_agnostic_quality(detect(teacher.model, inputs, flip), records)

    seen = look()
    verdict.teacher = seen.ap50
    unseen = unseen_classes(dataset, teacher.datasets)
    classes = MetadataCatalog.get(dataset).thing_classes
    found = _misread(teacher, look, flip, seen)
    if not found and unseen is not None and len(unseen) == len(classes):
        found = [_of_other_classes(seen, unseen)]
    elif unseen:
        verdict.notes.append(f"the teacher never saw {_listed(unseen)}.")
    if not keeps_normalization(teacher.model):
        verdict.notes.append(
            "the teacher has no pixel_mean and pixel_std of three colors, so other normalizations "
            "were not tried."
        )
    if not found and seen.ap50 < NOTHING:
        found = [_finds_nothing(seen, is_untrained(teacher.model))]
    half_size = bool(select(cfg, called("MODEL.TEACHER.HALF_SIZE")))
    verdict.notes += pooled_notes(teacher.model, inputs, records, verdict.distilled, half_size)
    if student_weights:
        student = build_model_of(student_config(cfg)).to(device).eval()
        load_in_full(student, student_weights, "--student-weights", "--config-file")
        verdict.student = class_agnostic_quality(detect(student, inputs), records).ap50
        found = found or _no_better(verdict.teacher, verdict.student)
    else:
        verdict.notes.append(
            "whether the teacher is better than your student was not looked at: give "
            "--student-weights, of one that was trained without a teacher."
        )
    verdict.findings += found


def _annotated(cfg: Config, verdict: Verdict) -> Tuple[str, List[Dict[str, Any]]]:
    """
    The first test set, or the first training set where there is none or nothing in it counts: its
    name, and its records with objects.
    """
    sets = [value_of(cfg, name) or [] for name in ("test_sets", "train_sets")]
    for name in (names[0] for names in sets if names):
        records = [r for r in DatasetCatalog.get(name) if _has_objects(r)]
        if records:
            return name, records
        verdict.notes.append(f"no object of '{name}' counts, so the teacher was not tried on it.")
    keys = keys_of(form_name(cfg))
    raise ValueError(
        f"Neither {keys['test_sets']} nor {keys['train_sets']} names a dataset with objects to try "
        "the teacher on: name one, or give --images 0."
    )


def _has_objects(record: Dict[str, Any]) -> bool:
    return any(not a.get("iscrowd") for a in record.get("annotations", ()))


def _misread(
    teacher: Detector, look: Callable[..., Quality], flip: bool, seen: Quality
) -> List[Finding]:
    """Whether the teacher finds more when its images are read in another way."""
    others = _otherwise_normalized(teacher.model, look)
    best = max(others, key=lambda name: others[name].ap, default="")
    highest = others[best] if others else seen
    swapped = look(not flip)
    # with the wrong colors another normalization may help a little, and the reverse
    if swapped.ap > highest.ap and _better(swapped, seen, BETTER_COLORS):
        return [_miscolored(swapped, seen, teacher.input_format)]
    if _better(highest, seen, BETTER_NORMALIZATION):
        return [_misnormalized(best, highest, seen)]
    return []


def _otherwise_normalized(model: nn.Module, look: Callable[..., Quality]) -> Dict[str, Quality]:
    """Each of ``NORMALIZATIONS`` that is not the model's; none where it does not keep its own."""
    others = {}
    for name, (mean, std) in NORMALIZATIONS.items():
        if keeps_normalization(model) and not _has(model, mean, std):
            with normalized(model, mean, std):
                others[name] = look()
    return others


def keeps_normalization(model: nn.Module) -> bool:
    """Whether a detector of colors has its mean and standard deviation where Detectron2's do."""
    own = [getattr(model, name, None) for name in ("pixel_mean", "pixel_std")]
    return all(isinstance(x, torch.Tensor) and x.numel() == 3 for x in own)


def _no_better(teacher: float, student: float) -> List[Finding]:
    if teacher >= student + WORTH_LEARNING_FROM:
        return []
    what = "not better" if teacher <= student else "hardly better"
    return [
        Finding(
            "weak teacher",
            f"this teacher is {what} than your student: AP50 {teacher:.1f} against {student:.1f}. "
            "Train it longer, or choose another.",
        )
    ]


def _of_other_classes(seen: Quality, unseen: List[str]) -> Finding:
    return Finding(
        "other data",
        f"the teacher was trained on other data and never saw {_listed(unseen)}. Your objects it "
        f"finds with an AP50 of {seen.ap50:.1f}. Train a teacher on your data first.",
    )


def _listed(names: List[str]) -> str:
    return f"{len(names)} of your classes ({shown(names)})"


def _better(other: Quality, than: Quality, margin: Tuple[float, float]) -> bool:
    points, factor = margin
    return other.ap > than.ap + points and other.ap > than.ap * factor


def _miscolored(swapped: Quality, as_it_is: Quality, input_format: str) -> Finding:
    other = "RGB" if input_format == "BGR" else "BGR"
    return Finding(
        "color order",
        f"as configured the teacher has an AP of {as_it_is.ap:.1f} on your images, and "
        f"{swapped.ap:.1f} if they are {other}: INPUT.FORMAT of its config, {input_format}, is not "
        "the order it was trained with.",
    )


def _misnormalized(name: str, other: Quality, as_it_is: Quality) -> Finding:
    mean, std = NORMALIZATIONS[name]
    return Finding(
        "normalization",
        f"as configured the teacher has an AP of {as_it_is.ap:.1f} on your images, and "
        f"{other.ap:.1f} with another normalization ({name}): set MODEL.PIXEL_MEAN {list(mean)} "
        f"and MODEL.PIXEL_STD {list(std)} in its config.",
    )


def is_untrained(model: nn.Module) -> bool:
    """
    Whether every bias of a detector's heads is one number, as it is initialized and no step of
    training leaves it. (The scores of an untrained detector may be anything.)
    """
    biases = [
        p
        for name, p in model.named_parameters()
        if name.endswith("bias") and not name.startswith("backbone.") and p.numel() > 1
    ]
    return bool(biases) and all((bias == bias.flatten()[0]).all() for bias in biases)


def _finds_nothing(seen: Quality, untrained: bool) -> Finding:
    if seen.best_score > 0.5 and not untrained:
        return Finding(
            "other data",
            f"the teacher finds nothing on your images (AP50 {seen.ap50:.1f}), and is sure of what "
            "it finds: it was trained on other data. Train one on yours first.",
        )
    return Finding(
        "untrained teacher",
        f"the teacher finds nothing on your images (AP50 {seen.ap50:.1f}), and is untrained, "
        f"or hardly trained (its highest score is {seen.best_score:.2f}). "
        "Check MODEL.TEACHER.WEIGHTS.",
    )


def _has(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> bool:
    own = torch.stack([model.pixel_mean.flatten(), model.pixel_std.flatten()]).cpu()
    return torch.allclose(own, torch.tensor([mean, std]))


@contextlib.contextmanager
def normalized(model: nn.Module, mean: Sequence[float], std: Sequence[float]):
    """Let a detector normalize with another mean and standard deviation, within the block."""
    before = model.pixel_mean.clone(), model.pixel_std.clone()
    try:
        for buffer, values in ((model.pixel_mean, mean), (model.pixel_std, std)):
            buffer.copy_(torch.tensor(values).view_as(buffer))
        yield
    finally:
        model.pixel_mean.copy_(before[0])
        model.pixel_std.copy_(before[1])
