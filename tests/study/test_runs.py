"""Runs side by side, with processes that train nothing."""

import sys

import pytest

from skd.study.common.command import RunError
from skd.study.common.runs import ChildRun, run_all


class Quick(ChildRun):
    """A process that ends at once, with an error if it is named so."""

    def command(self):
        return [sys.executable, "-c", f"raise SystemExit({int(self.name == 'fails')})"]


def test_what_waits_for_a_failed_run_is_not_started(tmp_path):
    fails, good = (Quick(name, "c.yaml", str(tmp_path / name), 1) for name in ("fails", "good"))
    waits = Quick("waits", "c.yaml", str(tmp_path / "waits"), 1, after=fails)
    ended = []
    run_all([waits, fails, good], 2, keep_going=True, on_end=lambda run: ended.append(run.name))
    assert sorted(ended) == ["fails", "good", "waits"] and not good.error
    assert "ended with 1" in fails.error and waits.process is None
    assert waits.error == "was not started, because 'fails' failed"
    with pytest.raises(RunError, match="the run 'fails' ended with 1"):
        run_all([fails], 1)
