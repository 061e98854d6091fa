"""
When there is a teacher, and how strongly its student is pulled: m(i) of :mod:`.balance`, by the
length of the training.
"""

import math
from typing import Any, List

from .words import called

DECAYS = ("none", "linear", "cosine")
# A student of small capacity that goes on copying gives up what it could find by itself (J. H. Cho
# and B. Hariharan, ICCV 2019). The number is from docs/results/default/PROTOCOL.md.
UNTIL = 1 / 3


class Schedule:
    """
    A part of :class:`GradientBalance`.

    Attributes:
        settings: a :class:`BalanceSettings`; of it ``warmup``, ``ramp``, ``decay``, ``until``.
        max_iter: iterations of the training; 0 where they are not known.
    """

    settings: Any
    max_iter: int

    def called(self, setting: str) -> str:
        """What the user calls a setting."""
        return called(type(self), setting)

    def check_schedule(self) -> None:
        """
        Raises:
            ValueError: a part of a training of unknown length, or nothing that is distilled.
        """
        s = self.settings
        for key, without in (("until", None), ("decay", "none")):
            if getattr(s, key) != without and not self.max_iter:
                raise ValueError(
                    f"{self.called(key)} is {getattr(s, key)!r}, a part of the training, whose "
                    f"length is not known: give {type(self).__name__} its max_iter."
                )
        if self.end() <= s.warmup + s.ramp:
            raise ValueError(
                f"{self.called('warmup')} and {self.called('ramp')} are {s.warmup + s.ramp} "
                f"iterations, and the teacher stops at {self.end():.0f} of {self.max_iter} "
                f"({self.called('until')}): nothing would be distilled. Make them fewer, or let it "
                "run longer."
            )

    def end(self) -> float:
        """The iteration from which on there is no teacher."""
        if self.settings.until is None:
            return UNTIL * self.max_iter or math.inf
        return self.settings.until * self.max_iter

    def by_length(self) -> List[str]:
        """What goes by the length of the training, in words."""
        found = []
        if self.end() < self.max_iter:
            end = math.ceil(self.end())
            found.append(f"{self.called('until')}, the teacher stops at iteration {end}")
        if self.settings.decay != "none":
            found.append(f"{self.called('decay')} {self.settings.decay}")
        return found

    def learn_length(self, max_iter: int) -> None:
        """Take the training's length from its runner, where ``max_iter`` was not given."""
        self.max_iter = self.max_iter or max_iter
        self.check_schedule()

    def multiplier(self, iteration: int) -> float:
        """
        m(i): 1, or what ramp and decay make of it. In the warm-up it is 1 too: what then keeps the
        student apart is :meth:`GradientBalance.begin`.
        """
        done = iteration - self.settings.warmup
        if done < 0:
            return 1.0
        if done < self.settings.ramp:
            return (done + 1) / self.settings.ramp
        if self.settings.decay == "none":
            return 1.0
        left = 1 - (done - self.settings.ramp) / (
            self.end() - self.settings.warmup - self.settings.ramp
        )
        left = min(max(left, 0.0), 1.0)
        return left if self.settings.decay == "linear" else (1 - math.cos(math.pi * left)) / 2
