"""Files that come with the project, in a checkout and in an installed wheel."""

import os

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# where "configs" may be: beside projects/ in a checkout, or inside the installed package
ROOTS = (os.path.dirname(os.path.dirname(_PACKAGE)), _PACKAGE)


def find_file(path: str) -> str:
    """
    A path relative to the working directory, or else to where the project's own configs are. One
    that is nowhere is returned as it is: it may be a URL or a name in the model zoo.
    """
    if os.path.isabs(path) or "://" in path or os.path.exists(path):
        return path
    found = [os.path.join(root, path) for root in ROOTS if os.path.exists(os.path.join(root, path))]
    return found[0] if found else path
