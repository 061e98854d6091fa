"""Whether a distillation is going to help, and why not: see :func:`examine`."""

from .examine import Finding, Verdict, examine
from .run import run_doctor

__all__ = ["Finding", "Verdict", "examine", "run_doctor"]
