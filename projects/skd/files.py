"""The places of the project's own files: in a checkout, an editable installation or a wheel."""

import os


def configs_dir() -> str:
    """The folder of the project's configs. In a checkout it is a link to ``configs/``."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs")
