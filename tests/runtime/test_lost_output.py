"""Output to a pipe whose reader has gone."""

import os
import sys

import pytest

from skd.runtime.lost_output import outlive_terminal


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_print_to_nobody_is_no_error(name, monkeypatch):
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, name, stream)
    print("heard", file=getattr(sys, name))
    assert os.read(reader, 100) == b"heard\n"
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        print("lost", file=getattr(sys, name))
    outlive_terminal()
    outlive_terminal()  # again is no other
    kept = getattr(sys, name)
    print("lost", file=kept, flush=True)
    assert kept.fileno() == writer and kept._stream is stream
    with pytest.raises(BrokenPipeError):
        stream.close()
