"""What a student returns in training: its losses, read as Detectron2's SimpleTrainer reads them."""

from typing import Any, Dict

import torch
from torch import nn

from ..distillers.balance import Terms

Losses = Dict[str, torch.Tensor]  # by name, as a detector returns them


def read_losses(output: Any) -> Losses:
    """
    Args:
        output: of the student's forward: a dict of losses, one loss, or a tuple that begins with
            either (as Unbiased Teacher's, whose trainer takes the rest for itself).

    Raises:
        TypeError: none of these.
        ValueError: no loss at all.
    """
    losses = output[0] if isinstance(output, tuple) and output else output
    if isinstance(losses, torch.Tensor):
        # not SimpleTrainer's "total_loss": that is the name of the sum with the distiller's
        return {"loss": losses}
    if not isinstance(losses, dict):
        raise TypeError(
            f"The student returned a {type(losses).__name__} in training; it must return a dict of "
            "losses, a single one, or a tuple with such a dict in front."
        )
    for name, value in losses.items():
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            what = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise TypeError(f"The student's loss '{name}' is {what}; it must be one number.")
    if not losses:
        raise ValueError(
            "The student returned an empty dict of losses in training, so there is nothing to "
            "train. If it only makes predictions in this call, call it in eval mode or within "
            "torch.no_grad()."
        )
    return losses


def write_losses(output: Any, losses: Losses) -> Any:
    """The student's output with other losses in their place."""
    return (losses, *output[1:]) if isinstance(output, tuple) else losses


def sum_losses(losses: Losses) -> torch.Tensor:
    """A scalar, whatever shapes of one number the losses have."""
    return sum(value.reshape(()) for value in losses.values())


def add_terms(losses: Losses, terms: Terms) -> Losses:
    """The student's losses, and each term's sum over levels."""
    twice = sorted(losses.keys() & terms.keys())
    if twice:
        raise ValueError(f"The student and the distiller both have a loss named {twice}.")
    return {**losses, **{name: sum(levels.values()) for name, levels in terms.items()}}


def check_terms(terms: Any, method: str) -> None:
    """
    Args:
        terms: what a distiller returned.
        method: its name.

    Raises:
        ValueError: no terms: the training would not distil, and nobody would notice.
        TypeError: something else.
    """
    if not isinstance(terms, dict) or not all(isinstance(x, dict) for x in terms.values()):
        raise TypeError(
            f"{method} returned {_outline(terms)}; the forward of a distiller must return a dict "
            "of terms, each a dict of losses by level."
        )
    empty = [name for name, levels in terms.items() if not levels]
    if empty or not terms:
        what = f"no level of {', '.join(empty)}" if empty else "no terms"
        raise ValueError(
            f"{method} returned {what}, so nothing is distilled. Are all its weights 0?"
        )


def _outline(value: Any) -> str:
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    return "{" + ", ".join(f"{k!r}: {type(v).__name__}" for k, v in value.items()) + "}"


def with_zero_gradients(losses: Losses, distiller: nn.Module) -> Losses:
    """
    The losses, with a gradient of zero for the distiller's parameters: data-parallel training
    waits for each, and an optimizer with momentum then sees for the distiller what it sees of the
    terms for the student.
    """
    learning = [p for p in distiller.parameters() if p.requires_grad]
    if not learning:
        return losses
    name, loss = next(iter(losses.items()))
    return {**losses, name: _WithZeros.apply(loss, *learning)}


class _WithZeros(torch.autograd.Function):
    """
    A loss as it is, that gives parameters gradients of zero: parts of one tensor. A distiller has
    more than a hundred, and with a sum, an addition and a copy for each a GPU's host would be as
    long at it as at distilling.
    """

    @staticmethod
    def forward(ctx, loss, *parameters):
        ctx.kind = {"dtype": parameters[0].dtype, "device": parameters[0].device}
        ctx.shapes = [p.shape for p in parameters]
        return loss.clone()  # a view could not be changed in place by who gets it

    @staticmethod
    def backward(ctx, grad):
        sizes = [shape.numel() for shape in ctx.shapes]
        parts = torch.zeros(sum(sizes), **ctx.kind).split(sizes)
        return grad, *(x.view(shape) for x, shape in zip(parts, ctx.shapes))
