"""Output that nobody reads any more ends no training: log.txt and the exit code have it all."""

import sys
from typing import Any


class _Output:
    """A stream whose reader may go: a closed terminal, or a pipe as to ``head``."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_terminal() -> None:
    """
    Let a command's process outlive its terminal: pycocotools prints, and a print to a terminal that
    is gone would end a training at its first evaluation, without a line in the log.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Output):
            setattr(sys, name, _Output(stream))
