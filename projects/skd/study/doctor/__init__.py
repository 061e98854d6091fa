"""
Whether a distillation is going to help, and why not: see :func:`examine`.

    run.py       the command
    examine.py   all that is looked at
    training.py  what the terms do to the student in a few iterations
    position.py  whether a feature map lies where its image says
    teacher.py   what the teacher finds on the student's images
    pooled.py    from which of its maps a two-stage teacher reads classes
    verdict.py   what is said

    table.py     tools/doctor_table.py: how often it is right
    cases.py     what that examines: faults that are planted, and sound runs
    planted.py   models for the faults that no key of a config plants
"""

from .examine import examine
from .run import run_doctor
from .verdict import Finding, Verdict

__all__ = ["Finding", "Verdict", "examine", "run_doctor"]
