"""
One training step of a model that distils: the student's forward, the teacher's, pairs of their
maps, the distiller's terms, and what there is to see of it.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from ..config.naming import called
from ..distillers import Distiller
from ..distillers.balance import PREFIX, short_name
from ..distillers.base import at_least_fp32
from ..distillers.gradient_norms import has_fp16
from ..distillers.shares import GradientShares
from ..runtime.memory import is_out_of_memory
from .features import FeatureTap, Maps, Size, Tapped, check_input, check_maps, crop
from .heads.teacher_heads import Calls
from .losses import (
    Losses,
    Terms,
    add_terms,
    check_terms,
    read_losses,
    sum_losses,
    with_zero_gradients,
    write_losses,
)
from .partial_forward import tap_and_stop
from .state import AlignedMaps, pairs_of, tapped_module
from .unlabelled import (
    TERM,
    ForwardArguments,
    check_needs_no_boxes,
    is_batch,
    names_what_is_missing,
    own_random_numbers,
    split_call,
    without_statistics,
)

# Of the iterations that distil, one in so many has its metrics written by the model itself; see
# pop_metrics.
METRICS_PERIOD = 20


def run_step(
    model: nn.Module, forward: Callable, args: Tuple[Any, ...], kwargs: Dict[str, Any]
) -> Any:
    """
    Args:
        model: a distilling one, in training mode.
        forward: the student's own; args, kwargs: what it is called with.

    Returns:
        What ``forward`` returns, with the distiller's terms added to its losses.

    Raises:
        TypeError, ValueError: what the student or the teacher did cannot be distilled; says why.
    """
    labelled, unlabelled = split_call(ForwardArguments(args, kwargs))
    call = partial(_call_student, model, forward, labelled)
    if not torch.is_grad_enabled():  # nothing to distil, nor to measure
        return call()
    model._skd.unlabelled |= unlabelled is not None
    balance = model.distiller.balance
    if balance is not None and balance.is_over(_iteration()):
        ended = [f"{PREFIX}{term}" for term in balance.terms()]
        return _run_between(model, call, [*ended, *([TERM] if model._skd.unlabelled else [])])
    if not _distils_now(model):
        return _run_between(model, call)
    output, losses = _run_distilling(model, call, labelled)
    if unlabelled is not None:
        losses = add_terms(losses, _distil_unlabelled(model, forward, unlabelled))
    return write_losses(output, losses)


def _run_distilling(
    model: nn.Module, call: Callable[[], Any], arguments: ForwardArguments
) -> Tuple[Any, Losses]:
    """
    A step that distils, on images with labels.

    Args:
        call: runs the student; arguments: what it does so with.

    Returns:
        What the student returns, and its losses with the distiller's terms.
    """
    batch, wait_for_teacher = _start_teacher(model, arguments)
    output, student, calls = _run_student(model, call)
    teacher = wait_for_teacher()
    losses = read_losses(output)
    maps = _paired_maps(model, student, teacher, batch)
    seen = _begin_balance(model, maps)
    aligned = _align(model, seen, teacher.maps)
    if _measures_now(model):
        model._skd.alike.measure(*aligned)
    terms = _distil(model.distiller, *aligned, batch)
    if model._skd.heads is not None:
        terms = {**terms, **_distil_heads(model, calls, teacher.maps)}
    own = sum_losses(losses)
    terms = _balance_terms(model, own, maps, terms, seen)
    _keep_metrics(model, own, terms)
    _show_maps(model, batch, *aligned)
    return output, add_terms(losses, terms)


def _distils_now(model: nn.Module) -> bool:
    """
    The same in all processes, in all parts of a batch, and after a resume, because the event
    storage has the trainer's own iteration.
    """
    every = model._skd.every
    if every == 1:
        return True
    if not has_event_storage():
        raise ValueError(
            f"{called('MODEL.DISTILLER.EVERY')} is {every}, and there is no event storage to tell "
            "the iteration: train within Detectron2's EventStorage and step() it, or leave it at 1."
        )
    return get_event_storage().iter % every == 0


def _iteration() -> Optional[int]:
    return get_event_storage().iter if has_event_storage() else None


def _run_between(model: nn.Module, call: Callable[[], Any], ended: Sequence[str] = ()) -> Any:
    """
    A step that does not distil: the student's own losses, by name and value.

    Args:
        ended: losses that are 0 from now on, and would else stay in the log as they were.
    """
    output = call()
    losses = read_losses(output)
    own = sum_losses(losses)
    _keep_metrics(model, own, {})
    losses = with_zero_gradients(losses, model.distiller)
    zeros = {name: {"": own.new_zeros(())} for name in ended}
    return write_losses(output, add_terms(losses, zeros))


class _Batch(NamedTuple):
    """
    inputs: as the student gets them; first_image: (C, H, W); sizes: height and width of each image;
    boxes: (G, 4) of each image, or None where the distiller needs none.
    """

    inputs: List[Dict[str, Any]]
    first_image: torch.Tensor
    sizes: List[Size]
    boxes: Optional[List[torch.Tensor]]


def _read_batch(distiller: Distiller, values: Iterable[Any]) -> _Batch:
    """What distillation needs of the batch, before the student may change it."""
    inputs = next(filter(is_batch, values), None)
    if inputs is None:
        raise TypeError(
            "DistillRCNN's forward needs Detectron2's batched inputs in training: a list of "
            "dicts with 'image'."
        )
    kind = type(inputs[0]["image"])
    if not issubclass(kind, torch.Tensor):
        raise TypeError(
            f"'image' in DistillRCNN's batch is a {kind.__module__}.{kind.__name__}; it must be a "
            "tensor (C, H, W), as a DatasetMapper makes it."
        )
    boxes = _object_boxes(distiller, inputs) if distiller.needs_boxes else None
    images = [x["image"] for x in inputs]
    return _Batch(inputs, images[0], [tuple(x.shape[-2:]) for x in images], boxes)


def _object_boxes(distiller: Distiller, inputs: List[Dict[str, Any]]) -> List[torch.Tensor]:
    try:
        boxes = [x["instances"].gt_boxes for x in inputs]
    except (KeyError, AttributeError):
        boxes = [None]
    if not all(isinstance(b, Boxes) for b in boxes):
        raise ValueError(
            f"{type(distiller).__name__}, the distiller, needs the objects' upright boxes, and the "
            "training images have none: choose a method that does without, like "
            "StructuredDistiller or PKD."
        )
    return [b.tensor.clone() for b in boxes]


def _start_teacher(
    model: nn.Module, arguments: ForwardArguments
) -> Tuple[_Batch, Callable[[], Tapped]]:
    """The batch, and a function that waits for the teacher's maps of it."""
    batch = _read_batch(model.distiller, arguments.values)
    return batch, model.teacher.start(batch.inputs, model._skd.input_format)


def _call_student(model: nn.Module, forward: Callable, arguments: ForwardArguments) -> Any:
    """A student that calls itself in its forward calls what it is without distillation."""
    model._skd.running = True
    try:
        return forward(*arguments.args, **arguments.kwargs)
    finally:
        model._skd.running = False


def _run_student(model: nn.Module, call: Callable[[], Any]) -> Tuple[Any, Tapped, Optional[Calls]]:
    """What the student returns, its maps, and what its watched heads were called with."""
    heads = model._skd.heads
    try:
        with heads.watch(model) if heads else nullcontext() as calls:
            return (*_tap_student(model, call), calls)
    except FloatingPointError:  # of Detectron2's proposals, which are not finite here
        _abstain(model)
        raise


def _tap_student(model: nn.Module, call: Callable[[], Any]) -> Tuple[Any, Tapped]:
    """What the student returns, and its maps."""
    # looked up in every step: a module may be replaced (torch.compile, checkpointing)
    module = tapped_module(model)
    key = called("MODEL.STUDENT.FEATURES")
    with FeatureTap(module, key) as tap:
        output = call()
    _check_gradient(model, module, tap.features, key)
    return output, tap.read()


def _check_gradient(model: nn.Module, module: nn.Module, maps: Maps, key: str) -> None:
    # what is no map is told by name later, if it is among the pairs
    tensors = [x for x in maps.values() if isinstance(x, torch.Tensor)]
    if any(x.requires_grad for x in tensors):
        return
    if any(p.requires_grad for p in module.parameters()):
        raise ValueError(
            f"None of the maps {list(maps)} of {key} has a gradient, though what "
            "makes them is trained: distillation would not reach it. (Reentrant activation "
            "checkpointing around it does that; use_reentrant=False, or naming the checkpointed "
            "module itself, does not.)"
        )
    balance = model.distiller.balance
    if balance is not None and model._skd.heads is not None:
        raise ValueError(
            f"What makes the maps of {key} is frozen, so they have no gradient, by which "
            f"{balance.called('enabled')} weighs what the heads learn from the teacher's: all of "
            "it would weigh 0. Set that False (each term then has weight 1), or let "
            f"{called('MODEL.STUDENT.FEATURES')} name a module that is trained."
        )


def _paired_maps(model: nn.Module, student: Tapped, teacher: Tapped, batch: _Batch) -> Maps:
    """The student's maps at which gradients are measured, once both sides are what was paired."""
    measured, pairs = model._skd.measured_pairs, pairs_of(model).values()
    own = {p.student_name: p.student for p in measured.values()}
    check_maps(student, own, batch.sizes, "student")
    check_maps(teacher, {p.teacher_name: p.teacher for p in pairs}, batch.sizes, "teacher")
    if student.input is not None:
        check_input(student.input, batch.sizes, model, "student")
    return {name: student.maps[name] for name in measured}


def _align(model: nn.Module, student: Maps, teacher: Maps) -> Tuple[Maps, Maps]:
    """The student's and the teacher's maps by the student's names, of equal sizes."""
    pairs = pairs_of(model).items()
    matched = {name: crop(student[name], teacher[pair.teacher_name]) for name, pair in pairs}
    student, teacher = ({name: two[i] for name, two in matched.items()} for i in (0, 1))
    return student, teacher


def _distil(distiller: Distiller, student: Maps, teacher: Maps, batch: _Batch) -> Terms:
    boxes, first = batch.boxes, next(iter(student.values()))
    if boxes is not None:
        boxes = [b.to(first.device, non_blocking=True) for b in boxes]
    if at_least_fp32(first) is not first and not torch.is_autocast_enabled(first.device.type):
        # a model after .half(): nothing would fit its maps to the layers, which are still fp32
        student, teacher = (
            {name: at_least_fp32(x) for name, x in maps.items()} for maps in (student, teacher)
        )
    terms = distiller(student, teacher, boxes)
    check_terms(terms, type(distiller).__name__)
    return terms


def _distil_heads(model: nn.Module, calls: Calls, maps: Maps) -> Terms:
    heads, balance = model._skd.heads, model.distiller.balance
    terms = heads.terms(model, model.teacher, calls, maps)
    if balance is not None:
        balance.limit(terms, heads.settings.max_weight)
    return terms


def _begin_balance(model: nn.Module, maps: Maps) -> Maps:
    """What the distiller gets to see of the student's maps."""
    if model.distiller.balance is None:
        return maps
    return model.distiller.balance.begin(maps, _iteration(), model._skd.every)


def _balance_terms(
    model: nn.Module, own: torch.Tensor, maps: Maps, terms: Terms, seen: Maps
) -> Terms:
    """The terms, weighed by their gradients at the student's maps, times ``every``."""
    balance, every = model.distiller.balance, model._skd.every
    if balance is not None:
        terms = balance(own, maps, terms, seen, model.distiller.proportions)
    elif _measures_now(model):
        _observe_shares(model._skd.shares, own, maps, terms)
    if every == 1:
        return terms
    return {t: {k: every * value for k, value in terms[t].items()} for t in terms}


def _observe_shares(shares: GradientShares, own: torch.Tensor, maps: Maps, terms: Terms) -> None:
    try:
        shares.observe(own, list(maps.values()), terms)
    except RuntimeError as error:
        # what would end any step, not the measurement alone
        if is_out_of_memory(error) or "DataLoader worker" in str(error):
            raise
        shares.give_up(error)


def _distil_unlabelled(model: nn.Module, forward: Callable, call: ForwardArguments) -> Terms:
    """
    All terms on images without labels, as one loss, with the weights that the terms on the labelled
    ones have. The step's random numbers remain those of a step without such images.
    """
    check_needs_no_boxes(model.distiller, "marked as such in the batch")
    run, balance = partial(_call_student, model, forward, call), model.distiller.balance
    module, key = tapped_module(model), called("MODEL.STUDENT.FEATURES")
    with own_random_numbers(next(model.parameters()).device), without_statistics(model):
        batch, wait_for_teacher = _start_teacher(model, call)
        with names_what_is_missing(batch.inputs, model):
            student = tap_and_stop(module, key, run).read()
        teacher = wait_for_teacher()
        maps = _paired_maps(model, student, teacher, batch)
        seen = maps if balance is None else balance.shown(maps)
        terms = _distil(model.distiller, *_align(model, seen, teacher.maps), batch)
    terms = terms if balance is None else balance.weigh(terms)
    total = sum(value for levels in terms.values() for value in levels.values())
    return {TERM: {"all": model._skd.unlabelled_weight * model._skd.every * total}}


def _abstain(model: nn.Module) -> None:
    """Measure nothing where this process alone fails, so that the others do not wait for it."""
    balance = model.distiller.balance
    _begin_balance(model, {})
    if _measures_now(model):  # first, as where it does not fail
        device = next(model.parameters()).device
        model._skd.alike.measure_nothing(len(pairs_of(model)), device)
    if balance is not None:
        balance.abstain()


def _measures_now(model: nn.Module) -> bool:
    """
    Whether gradients are measured, and how alike the maps are, in an iteration that has begun. The
    same in all processes.
    """
    balance, iteration = model.distiller.balance, _iteration()
    if balance is not None:
        return balance.due()
    if iteration is None:
        return False
    state, half = model._skd, has_fp16([next(model.parameters())])
    return state.shares.due(iteration, state.every, state.measured_every, half)


def _keep_metrics(model: nn.Module, own: torch.Tensor, terms: Terms) -> None:
    """Keep the metrics for who pops them, or put them into the event storage every so often."""
    distiller = model.distiller
    metrics = {"detector_loss": own}
    for term, levels in terms.items():
        short = short_name(term)
        metrics.update({f"distill/{short}_{level}": value for level, value in levels.items()})
    if terms:
        measured = distiller.balance or model._skd.shares
        scalars = {**measured.scalars(), **model._skd.alike.scalars()}
        metrics.update({f"distill/{name}": value for name, value in scalars.items()})
    metrics = {name: value.detach() for name, value in metrics.items()}
    if distiller.metrics is not None:  # somebody pops them
        distiller.metrics = metrics
    elif has_event_storage() and _iteration() % (METRICS_PERIOD * model._skd.every) == 0:
        values = torch.stack([value.float().reshape(()) for value in metrics.values()])
        get_event_storage().put_scalars(**dict(zip(metrics, values.tolist())))


def _show_maps(model: nn.Module, batch: _Batch, student: Maps, teacher: Maps) -> None:
    watcher, model._skd.watcher = model._skd.watcher, None
    if watcher is None:
        return
    strides = {name: pair.stride for name, pair in pairs_of(model).items()}
    image_format = model._skd.input_format
    watcher(AlignedMaps(batch.first_image, image_format, student, teacher, strides))
