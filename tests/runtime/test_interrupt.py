"""Ctrl-C while a command is still importing."""

import importlib
import signal
import subprocess
import sys

import skd.study
from skd.runtime import interrupt
from tests.processes import environment

# an import that takes so long that Ctrl-C falls into it
SLOW = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "detectron2":
            import os, signal
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Slow())
import skd.study.common.command
"""


def test_ctrl_c_during_imports_is_a_word(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SLOW], env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGINT  # 130 in a shell
    assert done.stderr == "Interrupted.\n"


def test_the_package_leaves_a_program_its_own_words(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", None)
    importlib.reload(skd.study)  # which is for commands only
    assert sys.excepthook is interrupt._hook
    interrupt.show_traceback()  # as after import skd
    assert sys.excepthook is interrupt._before is not interrupt._hook
    seen = []
    monkeypatch.setattr(interrupt, "_before", lambda *error: seen.append(error))
    interrupt._hook(ValueError, ValueError("x"), None)
    assert len(seen) == 1 and not capsys.readouterr().err
