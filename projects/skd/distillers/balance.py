"""
Weights of the terms by their gradients instead of their values.

What a loss does to the student is its gradient at the student's feature maps. Its value says
little: a norm grows with batch, image and channels, and every method has a scale of its own. So a
term's weight is chosen such that the norm of its gradient is a set share of the norm of the
detector's own gradient at the same maps:

    w_t = m(i) * s_t * |d L_detector / d A| / |d L_t / d A|

for the maps A of all levels together, shares s_t whose sum is ``share``, and a schedule m(i). A
detector's gradient is not spread over the levels as a distiller's is: where objects are small it is
at P2 nearly alone, and the coarser levels are pulled many times harder than the detector does. With
``per_level`` the norms are those at A_l, and each level's loss gets a weight w_t,l of its own.

The same idea balances EnCodec's discriminators (A. Defossez et al., arXiv 2210.13438, section 3.4)
and, with learned weights, GradNorm's tasks (Z. Chen et al., ICML 2018).
"""

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple, Union

import torch

from .gradient_norms import DETECTOR, GradientNorms
from .schedule import DECAYS, Schedule
from .settings import Settings, choice, count, flag, number, part, proportions, whole

Maps = Dict[str, torch.Tensor]  # feature maps (N, C, H, W) by level
Terms = Dict[str, Dict[str, torch.Tensor]]  # scalars by term and level
Shares = Union[Mapping[str, float], Sequence[Tuple[str, float]]]  # by term, or pairs of the same

PREFIX = "loss_distill_"
# A dense head's own gradient at the maps is up to ten times smaller than that of heads of regions,
# as its last layers start at the prior's probability: at 3 such a student never comes like its
# teacher, and ends below its baseline (docs/results/default/PROTOCOL.md, round 12).
SHARE, DENSE_SHARE = 3.0, 30.0


@dataclass(frozen=True)
class BalanceSettings(Settings):
    """The keys ``MODEL.DISTILLER.BALANCE.*``."""

    # Weigh each term such that its gradient at the student's maps is a set share of the detector's
    # own there, whatever the term's scale. None: yes, unless the method in use names published
    # weights, as StructuredDistiller does by STRUCTURED.PRESET.
    enabled: Optional[bool] = flag(None)
    # Share of all terms together, in norms of the detector's gradient. None: 3, and 30 for a
    # student whose head predicts at the maps themselves, as RetinaNet's and FCOS's do.
    share: Optional[float] = number(None)
    # Hold it at each level, for terms that have a loss for each; else for all levels together.
    per_level: bool = flag(False)
    # Proportions of the terms: list of [term, number], e.g. [["structured_at", 0.1]]; 1 for those
    # not named. 0: the term pulls nothing, and its layers do not learn.
    shares: Shares = proportions(())
    # Iterations at the start in which the distiller's layers learn, without the student.
    warmup: int = count(0)
    # Iterations after these in which the share grows from 0.
    ramp: int = count(0)
    # How the share shrinks to 0 from then on.
    decay: str = choice("none", DECAYS)
    # The part of SOLVER.MAX_ITER in which there is a teacher: 0.5 stops it halfway, and from then
    # on a step is the student's own. None: a third, where the length of the training is known.
    until: Optional[float] = part(None)
    # The gradients are measured in each of the first BURN_IN iterations and in every PERIOD-th
    # after, as running means of this MOMENTUM. Those that do not distil (EVERY) do not count here.
    # Without balance they are measured in every PERIOD-th, to be shown alone.
    # In the same ones it is measured how alike the maps are (CKA).
    period: int = whole(20)
    burn_in: int = whole(20)
    momentum: float = number(0.9, below=1)


class GradientBalance(GradientNorms, Schedule):
    """
    Weighs the terms of any :class:`Distiller`. Knows tensors only.

    The norms are measured by an extra backward pass from the losses to the maps. All processes use
    the same ones, and a run that resumes has the weights it had. No step waits for the device, but
    for what the detector's own backward pass waits for, which is run a second time where the norms
    are measured.

    Attributes:
        taken: whether it weighs a distiller's terms; set by :meth:`Distiller.bind_once`.
        dense: whether the student's head predicts at the maps; set by the meta-architecture.
    """

    Settings = BalanceSettings
    taken = False
    dense = False

    def __init__(
        self,
        *,
        max_iter: int = 0,
        enabled: Optional[bool] = True,
        **settings: Any,
    ):
        """
        Args:
            max_iter: iterations of the training; needed for a decay, and to stop before the end.
            enabled: None leaves it to the distiller, see :meth:`Distiller.wants_balance`.
            settings: further fields of :class:`BalanceSettings`.

        Raises:
            ValueError: a value out of range, or a schedule without a ``max_iter`` that it fits in;
                names the setting.
            TypeError: a setting that there is not.
        """
        settings["enabled"] = enabled
        s = self.Settings.make(settings, type(self))
        super().__init__(s.momentum, s.per_level)
        self.settings, self.max_iter = s, max_iter
        self.check_schedule()
        self._own_proportions: Dict[str, float] = {}
        self.limits: Dict[str, float] = {}  # of weights, by term, for those that have one
        self.proportions = {short_name(name): value for name, value in dict(s.shares).items()}
        self.register_buffer("iteration", torch.zeros((), dtype=torch.long))
        self._iteration: Optional[int] = None  # the same on the host, where nobody waits for it
        self._levels: List[str] = []  # names of the maps, in the order of the norms
        self._by_levels: Set[str] = set()  # terms that have a loss for each level
        self._every = 1
        self._loaded = False  # a checkpoint, whose run may have had other terms

    @property
    def default_share(self) -> float:
        """``share`` where it is not set."""
        return DENSE_SHARE if self.dense else SHARE

    @property
    def share_factor(self) -> float:
        """How many times :data:`SHARE` the default is; limits of a share grow with it."""
        return self.default_share / SHARE

    @property
    def share(self) -> float:
        """Of all terms together."""
        return self.default_share if self.settings.share is None else self.settings.share

    def is_over(self, iteration: Optional[int] = None) -> bool:
        """
        Whether nothing is left to distil.

        Args:
            iteration: as for :meth:`begin`.
        """
        return (self._next() if iteration is None else iteration) >= self.end()

    def _next(self) -> int:
        """The iteration that :meth:`begin` counts by itself."""
        return int(self.iteration) if self._iteration is None else self._iteration + 1

    @classmethod
    def config_key(cls) -> str:
        """The node of its settings below ``MODEL.DISTILLER``."""
        return "BALANCE"

    def begin(self, maps: Maps, iteration: Optional[int] = None, every: int = 1) -> Maps:
        """
        Begin an iteration: what the distiller gets to see of the student.

        Args:
            maps: the student's feature maps by level.
            iteration: of the training; counted here if None.
            every: iterations from one that distils to the next.

        Returns:
            The maps, or in the warm-up detached leaves in their place.
        """
        iteration = self._next() if iteration is None else iteration
        self._iteration, self._every = iteration, every
        self.iteration.fill_(iteration + 1)
        return self.shown(maps)

    def shown(self, maps: Maps) -> Maps:
        """Maps as the distiller gets to see them in the present iteration; see :meth:`begin`."""
        self._levels = list(maps) or self._levels
        if self._iteration >= self.settings.warmup:
            return maps
        return {name: x.detach().requires_grad_() for name, x in maps.items()}

    def forward(
        self,
        detector: torch.Tensor,
        maps: Maps,
        terms: Terms,
        seen: Maps,
        proportions: Mapping[str, float] = MappingProxyType({}),
    ) -> Terms:
        """
        Args:
            detector: the sum of the detector's own losses, a scalar.
            maps: the student's feature maps.
            terms: scalars by term and level, as a distiller returns them.
            seen: what it was given, from :meth:`begin`.
            proportions: of the terms, the distiller's own, which multiply those set.

        Returns:
            The terms, weighted.

        Raises:
            ValueError: ``SHARES`` names a term that there is not.
        """
        names = {short_name(name) for name in terms}
        if self._loaded:
            self._loaded = False
            self.keep_only(names, len(maps))
        if self.due() or not names <= self.norms_by_level().keys():
            totals = {short_name(name): sum(levels.values()) for name, levels in terms.items()}
            self.measure(detector, list(maps.values()), totals, list(seen.values()))
        self._own_proportions = {short_name(name): value for name, value in proportions.items()}
        return self.weigh(terms)

    def weigh(self, terms: Terms) -> Terms:
        """Other values of the terms, by the weights of the present iteration."""
        of_levels = set(self._levels)
        self._by_levels |= {
            short_name(name) for name, losses in terms.items() if losses.keys() <= of_levels
        }
        weights = self.weights()
        return {
            name: self._weigh(short_name(name), losses, weights[short_name(name)])
            for name, losses in terms.items()
        }

    def _weigh(
        self, term: str, losses: Dict[str, torch.Tensor], weight: torch.Tensor
    ) -> Dict[str, torch.Tensor]:
        if not self._is_weighed_by_level(term):
            return {key: weight * loss for key, loss in losses.items()}
        weights = dict(zip(self._levels, self._by_level(term)))
        return {level: weights[level] * loss for level, loss in losses.items()}

    def _is_weighed_by_level(self, term: str) -> bool:
        return self.per_level and term in self._by_levels

    def _by_level(self, term: str) -> torch.Tensor:
        """Weights w_t,l of a term at each level, (L,)."""
        norms = self.norms_by_level()
        weights = self._weight(term, norms[DETECTOR], norms[term])
        return weights.expand(len(self._levels) or len(weights))  # (1,) before a first measurement

    def due(self) -> bool:
        """Whether the norms are measured in this iteration. The same in all processes."""
        i = self._iteration // self._every
        # at the end of the warm-up the distiller's maps are others
        after_warmup = math.ceil(self.settings.warmup / self._every)
        begun = any(0 <= i - start < self.settings.burn_in for start in (0, after_warmup))
        return begun or i % self.settings.period == 0 or not self.norms_by_level()

    def abstain(self) -> None:
        """Take part in an iteration that failed here: see :meth:`measure_nothing`."""
        if self.due() and self.norms_by_level():
            self.measure_nothing()

    def terms(self) -> List[str]:
        """Names of the terms that were measured."""
        return [name for name in self.norms_by_level() if name != DETECTOR]

    def shares(self) -> Dict[str, float]:
        """Shares s_t by term."""
        terms = self.terms()
        unknown = sorted(set(self.proportions) - set(terms))
        if unknown:
            raise ValueError(
                f"{self.called('shares')} names {unknown}, but the terms are {sorted(terms)}."
            )
        given, own = self.proportions, self._own_proportions
        product = {t: given.get(t, 1.0) * own.get(t, 1.0) for t in terms}
        total = sum(product.values()) or 1.0
        return {name: self.share * value / total for name, value in product.items()}

    def scalars(self) -> Dict[str, torch.Tensor]:
        """
        What there is to see, by name: for each term its share of the detector's gradient, its
        weight, the norm of its gradient without the weight, and the cosine of its gradient and the
        detector's; and the norm of the detector's.
        """
        norms, weights = self.norms(), self.weights()
        pulls = float(self._iteration >= self.settings.warmup)  # else the student sees nothing
        found = {f"norm_{name}": norm for name, norm in norms.items()}
        for name, weight in weights.items():
            found[f"weight_{name}"] = weight
            share = weight * norms[name] / norms[DETECTOR].clamp_min(1e-30)
            found[f"share_{name}"] = pulls * share
        found.update({f"cosine_{name}": cosine for name, cosine in self.cosines.items()})
        return found

    def weights(self) -> Dict[str, torch.Tensor]:
        """
        w_t by term, of the present iteration; 0 for one without a gradient. Of a term weighted
        level by level, what makes its gradient as long as these weights do.
        """
        norms = self.norms()
        weights = {}
        for term in self.terms():
            if self._is_weighed_by_level(term):
                weights[term] = self._length(term) / norms[term].clamp_min(1e-30)
            else:
                weights[term] = self._weight(term, norms[DETECTOR], norms[term])
        return weights

    def _length(self, term: str) -> torch.Tensor:
        """The norm of a term's gradient, weighted level by level."""
        weights, norms = self._by_level(term), self.norms_by_level()[term]
        return torch.linalg.vector_norm(weights * norms)

    def _weight(self, term: str, detector: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """From the norms of a term's gradient and the detector's, both (L,) or both scalars."""
        share = self.multiplier(self._iteration) * self.shares()[term]
        weight = torch.where(norm > 0, share * detector / norm, 0.0).float()
        return weight.clamp(max=self.limits.get(term, math.inf))

    def limit(self, terms: Iterable[str], most: float) -> None:
        """Let these terms weigh no more than ``most``, whatever share they then have."""
        self.limits.update({short_name(name): most for name in terms})

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._iteration, self._loaded = None, True  # the checkpoint's counts
        super()._load_from_state_dict(*args, **kwargs)


def split_losses(
    losses: Mapping[str, torch.Tensor],
) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
    """The sum of the detector's own losses, and the distiller's terms, of a step that distils."""
    terms = {name: loss for name, loss in losses.items() if name.startswith(PREFIX)}
    return sum(loss for name, loss in losses.items() if name not in terms), terms


def short_name(term: str) -> str:
    """A term's name in scalars, without :data:`PREFIX`."""
    return term.removeprefix(PREFIX)
