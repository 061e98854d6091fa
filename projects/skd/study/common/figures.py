"""Pictures drawn with matplotlib."""

from typing import Any


def save(figure: Any, path: str) -> None:
    """Write a picture that changes only with what it shows, and close it."""
    from matplotlib import pyplot as plt

    # no date and no version in the file: it changes only with the results
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
