"""Teachers that Python has built already. A config can only name them: they are kept here."""

from typing import Any, Dict, Optional

MARK = "built in Python: "
_kept: Dict[str, Any] = {}  # by name


def keep(teacher: Any) -> str:
    """The name of a built teacher for a config, the same for the same one."""
    for name, known in _kept.items():
        if known is teacher:
            return name
    name = f"{MARK}{type(teacher).__name__} {len(_kept) + 1}"
    _kept[name] = teacher
    return name


def find_built(name: str) -> Optional[Any]:
    """
    The teacher of a name; None where the name is a file or one of Detectron2's model zoo.

    Raises:
        ValueError: another process has built it.
    """
    if not name.startswith(MARK):
        return None
    if name not in _kept:
        raise ValueError(
            f"The teacher '{name}' is a model that skd.distill() was given in another process. Run "
            "the script that built it, with skd.distill() called in each of its processes, or name "
            "a config file and a checkpoint instead."
        )
    return _kept[name]
