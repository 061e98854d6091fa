"""Every configuration key, and the same verbs for YAML and LazyConfig: read, distil, student of."""

from .yaml import (
    META_ARCHITECTURE,
    SOLVER_KEYS,
    add_skd_config,
    distill,
    is_distilling,
    is_lazy_file,
    merge_file,
    read_config,
    student_config,
)

__all__ = [
    "META_ARCHITECTURE",
    "SOLVER_KEYS",
    "add_skd_config",
    "distill",
    "is_distilling",
    "is_lazy_file",
    "merge_file",
    "read_config",
    "student_config",
]
