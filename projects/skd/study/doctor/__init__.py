"""Whether a distillation is going to help, and why not: see :func:`examine`."""

from .examine import examine
from .run import run_doctor
from .verdict import Finding, Verdict

__all__ = ["Finding", "Verdict", "examine", "run_doctor"]
