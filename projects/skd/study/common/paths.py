"""Files that come with the project, in a checkout and in an installed wheel."""

import os

from ...files import configs_dir
from ...runtime.downloads import is_remote


def find_file(path: str) -> str:
    """
    A path relative to the working directory, or else one below the project's own ``configs/``. One
    that is nowhere is returned as it is: it may be a URL or a name in the model zoo.
    """
    if not path or os.path.isabs(path) or is_remote(path) or os.path.exists(path):
        return path
    ours = os.path.join(os.path.dirname(configs_dir()), path)
    return ours if os.path.exists(ours) else path
