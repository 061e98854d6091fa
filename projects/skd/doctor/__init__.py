"""Whether a distillation is going to help, and why not: see :func:`examine`."""

from .examine import Finding, Verdict, examine

__all__ = ["Finding", "Verdict", "examine"]
