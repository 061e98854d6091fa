"""tools/gpu_day.py without a GPU, and the tables that make results makes of what it writes."""

import argparse
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from skd.study.benchmark.measure import machine
from skd.study.gpu_day import (
    BENCH,
    TESTS,
    TESTS_SECONDS,
    Part,
    _files_with_gpu_tests,
    gpu_day,
    run_parts,
)
from skd.study.results import fill
from tests.helpers import ROOT, read
from tests.processes import environment

JUNIT = """<testsuites><testsuite><testcase name="a" time="1.5"/><testcase name="b" time="0.5">
<failure message="no"/></testcase><testcase name="c"><skipped/></testcase></testsuite>
</testsuites>"""


def python(name, code, seconds=20, file=""):
    return Part(name, seconds, [sys.executable, "-c", code], str(file))


def test_no_part_stops_the_others_and_each_has_its_time(tmp_path):
    xml, alive = tmp_path / "tests.xml", tmp_path / "alive"
    child = f"import time; time.sleep(3); open({str(alive)!r}, 'w')"
    hanging = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parts = [
        python("fails", f"print('why', {os.path.join(ROOT, 'x')!r}); raise SystemExit(3)"),
        python("hangs", hanging, seconds=1.5),
        python("tests", f"open({str(xml)!r}, 'w').write({JUNIT!r})", file=xml),
        python("late", "", seconds=9),
    ]
    day = run_parts(parts[:3], 60, str(tmp_path / "gpu.json"), ROOT)
    assert day == json.loads((tmp_path / "gpu.json").read_text())
    assert [p["status"] for p in day["parts"]] == ["ended with 3", "stopped after 2 s", "done"]
    assert day["parts"][0]["output"] == ["why x\n"]  # no path of this machine
    assert ROOT not in day["parts"][0]["command"][1]
    assert [t["outcome"] for t in day["tests"]] == ["passed", "failed", "skipped"]
    late = run_parts(parts[3:], 0, str(tmp_path / "gpu.json"), ROOT)
    assert late["parts"][3]["status"] == "no time left"
    again = python("fails", "print('why'); raise SystemExit(4)")
    both = run_parts([again], 60, str(tmp_path / "gpu.json"), ROOT)  # the rest stays
    assert [p["name"] for p in both["parts"]] == ["hangs", "tests", "late", "fails"]
    assert both["parts"][3]["status"] == "ended with 4" and len(both["tests"]) == 3
    time.sleep(1)
    assert not alive.exists()  # what a part started ends with it


def test_a_dry_run_measures_on_the_cpu(tmp_path):
    done = subprocess.run(
        [sys.executable, "tools/gpu_day.py", "--dry-run", "--output", tmp_path, "--only", "loss"],
        cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    day = json.loads((tmp_path / "dry_run.json").read_text())
    assert [r["name"] for r in day["rows"]] == ["loss_time", "loss_launches", "machine"]
    assert not (tmp_path / "gpu.json").exists()  # of a day with a GPU, which keeps what is in it
    os.makedirs(tmp_path / "docs" / "results")
    os.rename(tmp_path / "dry_run.json", tmp_path / "docs" / "results" / "gpu.json")
    for name, row in (("gpu", "| loss_time "), ("gpu_tests", "| loss   | done |")):
        assert row in fill(f"<!-- {name}: made by make results -->\n<!-- end -->", str(tmp_path))


def test_rows_of_another_machine_are_not_kept(tmp_path):
    path = str(tmp_path / "gpu.json")

    def measure(name, gpu):
        rows = json.dumps([{"name": f"{name}_row"}, {"name": "machine", "gpu": gpu}])
        file = tmp_path / f"{name}.json"
        part = python(name, f"open({str(file)!r}, 'w').write({rows!r})", file=file)
        return [r["name"] for r in run_parts([part], 60, path, ROOT)["rows"]]

    measure("loss", "A")
    assert measure("step", "A") == ["loss_row", "step_row", "machine"]
    assert measure("every", "B") == ["every_row", "machine"]


def test_a_part_whose_time_is_over_may_write_what_it_has(tmp_path):
    xml = tmp_path / "tests.xml"
    writes = f"open({str(xml)!r}, 'w').write({JUNIT!r})"
    code = f"import time\ntry: time.sleep(9)\nexcept KeyboardInterrupt: {writes}"
    day = run_parts(
        [python("tests", code, seconds=1.5, file=xml)], 60, str(tmp_path / "gpu.json"), ROOT
    )
    assert day["parts"][0]["status"] == "stopped after 2 s" and len(day["tests"]) == 3


def test_what_a_bare_machine_lacks_hides_nothing(tmp_path, monkeypatch):
    """Packages that only other tests need, an installed skd, git."""
    files = _files_with_gpu_tests(ROOT)
    names = {os.path.relpath(file, ROOT) for file in files}
    assert os.path.join("tests", "modeling", "test_teacher.py") in names
    assert os.path.join("tests", "study", "test_study.py") not in names  # CUDA_VISIBLE_DEVICES
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine("cpu")["commit"] == ""


def test_the_parts_fit_nine_minutes_but_for_what_waits_for_time():
    first = list(BENCH)[:-8]
    assert TESTS_SECONDS + sum(BENCH[name] for name in first) <= 9 * 60
    assert TESTS not in BENCH


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    args = argparse.Namespace(dry_run=False, output=str(tmp_path / "out"), only=[], minutes=9)
    with pytest.raises(ValueError, match="finds no GPU"):
        gpu_day(args, ROOT)
    assert not (tmp_path / "out").exists()


def test_the_documents_hold_what_the_results_say():
    for page in ("docs/performance.md", "docs/results/gpu.md"):
        text = read(page)
        assert fill(text, ROOT) == text
    with pytest.raises(
        ValueError, match="No results are named 'other'; there are .*bench, bench_more, gpu"
    ):
        fill("<!-- other: made by make results -->\n<!-- end -->", ROOT)
