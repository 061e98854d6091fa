"""What tools/gpu_day.py does: all that needs a GPU, in parts, each within a time of its own."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any, Dict, List, NamedTuple, Tuple
from xml.etree import ElementTree

from .common.result_files import make_output, write_text
from .common.runs import stop_on_sigterm

# Parts of tools/benchmark.py, and seconds for each. What matters most comes first: the last ones
# wait for time that the others leave.
BENCH = {
    "loss": 40, "memory": 60, "step": 60, "side_stream": 40, "every": 60, "teacher": 40,
    "processes": 40, "eval": 30, "growth": 30, "peer": 30, "balance": 40, "half_size": 30,
    "heads": 30, "unlabelled": 30, "compile": 120,
}  # fmt: skip
CPU_TIMES = 4  # as many seconds, in a dry run
TESTS = "tests"
TESTS_SECONDS = 180
LAST_SECONDS = 5  # of a part whose time is over, to write what it has


class Part(NamedTuple):
    """One command: its name, the seconds it may take, and the file of results it writes."""

    name: str
    seconds: float
    command: List[str]
    file: str


def gpu_day(args: argparse.Namespace, root: str) -> int:
    """
    Args:
        args: of the command line.
        root: of a checkout.

    Returns:
        The exit code: 1 if a part failed, was stopped, or had no time left.

    Raises:
        ValueError: there is no GPU.
    """
    if not args.dry_run:
        _check_gpu()
    stop_on_sigterm()
    make_output(args.output)
    names = args.only or [*list(BENCH)[:2], TESTS, *list(BENCH)[2:]]
    parts = [_part(name, args, root) for name in names]
    # a file of its own for a CPU's rows: a later day would keep some of them, as a GPU's
    path = os.path.join(args.output, "dry_run.json" if args.dry_run else "gpu.json")
    day = run_parts(parts, 60.0 * args.minutes, path, root)
    print(f"{path} holds all of it.")
    if not args.dry_run:
        print("Copy it to docs/results, and 'make results' makes the tables.")
    return int(any(part["status"] != "done" for part in day["parts"]))


def _check_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise ValueError("PyTorch finds no GPU here; --dry-run runs the parts on the CPU.")


def _part(name: str, args: argparse.Namespace, root: str) -> Part:
    if name == TESTS:
        return _tests(args, root)
    folder = os.path.join(os.path.abspath(args.output), name)
    command = [sys.executable, os.path.join(root, "tools", "benchmark.py"), "--only", name]
    if args.dry_run:
        command += "--device cpu --images 1 --size 64 96 --repeats 1".split()
    else:
        command += "--device cuda --repeats 10".split()
    command += ["--output", folder]
    seconds = BENCH[name] * (CPU_TIMES if args.dry_run else 1)
    return Part(name, seconds, command, os.path.join(folder, "results.json"))


def _tests(args: argparse.Namespace, root: str) -> Part:
    """Files with tests marked ``gpu``: others may import what a bare machine lacks."""
    file = os.path.join(os.path.abspath(args.output), "tests.xml")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--junitxml", file]
    command += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    command += [*(["--collect-only"] if args.dry_run else [])]
    return Part(TESTS, TESTS_SECONDS, [*command, *_files_with_gpu_tests(root)], file)


def _files_with_gpu_tests(root: str) -> List[str]:
    found = []
    for folder, _, names in os.walk(os.path.join(root, "tests")):
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith("test_") and name.endswith(".py"):
                with open(path) as f:
                    found += [path] if re.search(r"mark\.gpu|\bDEVICES\b", f.read()) else []
    return sorted(found)


def run_parts(parts: List[Part], seconds: float, path: str, root: str) -> Dict[str, Any]:
    """
    Run all parts one after the other, whatever becomes of each, and write what is known after
    every one of them. What an earlier call left in the file stays, but for parts that run again.

    Args:
        seconds: for all together. A part gets no more than what is left of it.
        path: of the JSON. Each part's output goes beside it, to ``PART.log``.
        root: of a checkout, where the commands run.

    Returns:
        ``parts``: name, status, seconds, command and end of the output of each; ``rows`` of the
        benchmark; ``tests``: name, outcome and seconds of each.
    """
    end = time.monotonic() + seconds
    day = _day_so_far(path)
    for part in parts:
        log = os.path.join(os.path.dirname(path), f"{part.name}.log")
        if os.path.exists(part.file):  # of an earlier day
            os.remove(part.file)
        result = _run(part, min(part.seconds, end - time.monotonic()), log, root)
        print(f"{part.name}: {result['status']}, {result['seconds']:.0f} s", flush=True)
        _add_results(day, part, result)
        write_text(path, json.dumps(day, indent=1))
    return day


def _run(part: Part, limit: float, log: str, root: str) -> Dict[str, Any]:
    start, status = time.monotonic(), "no time left"
    if limit > 0:
        status = _status(part.command, limit, log, root)
    seconds = time.monotonic() - start
    # results are made to be shared: without this machine's paths
    here = f"{root}{os.sep}"
    command = [argument.replace(here, "") for argument in part.command[1:]]
    result = {"name": part.name, "status": status, "seconds": seconds, "command": command}
    if status not in ("done", "no time left"):
        with open(log, errors="replace") as f:
            result["output"] = [line.replace(here, "") for line in f.readlines()[-30:]]
    return result


def _status(command: List[str], limit: float, log: str, root: str) -> str:
    paths = [os.path.join(root, "projects"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONWARNINGS": "ignore"
    }  # fmt: skip
    with open(log, "w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=root, env=environment,
            start_new_session=True,
            # a shell's background jobs ignore Ctrl-C, and so would this
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            code = process.wait(limit)
            return "done" if code == 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            _interrupt(process)
            return f"stopped after {limit:.0f} s"
        finally:
            _kill_group(process)


def _interrupt(process: subprocess.Popen) -> None:
    """pytest then writes the tests that it has run."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(LAST_SECONDS)
    except subprocess.TimeoutExpired:
        pass


def _kill_group(process: subprocess.Popen) -> None:
    """The process and all that it started, or a GPU would stay in use."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all have ended
        pass
    process.wait()


def _day_so_far(path: str) -> Dict[str, Any]:
    if not os.path.exists(path):
        return {"parts": [], "rows": [], "tests": []}
    with open(path) as f:
        return json.load(f)


def _add_results(day: Dict[str, Any], part: Part, result: Dict[str, Any]) -> None:
    """
    Put a part's results in the place of those of an earlier call. Rows of another machine or torch
    are left out: the table names one for all of them.
    """
    day["parts"] = [p for p in day["parts"] if p["name"] != part.name] + [result]
    rows, tests = _read_results(part)
    if part.name == TESTS:
        day["tests"] = tests
        return
    machine = [r for r in [*day["rows"], *rows] if r["name"] == "machine"]
    same = len({tuple(map(r.get, ("gpu", "processor", "torch"))) for r in machine}) < 2
    earlier = day["rows"] if same else []
    kept = [r for r in earlier if r["name"] != "machine" and r["part"] != part.name]
    new = [{**r, "part": part.name} for r in rows if r["name"] != "machine"]
    day["rows"] = [*kept, *new, *machine[-1:]]


def _read_results(part: Part) -> Tuple[List[Dict[str, Any]], List[Dict[str, Any]]]:
    """Rows of the benchmark, and tests."""
    if not os.path.exists(part.file):
        return [], []
    if part.file.endswith(".xml"):
        return [], [_test(case) for case in ElementTree.parse(part.file).iter("testcase")]
    with open(part.file) as f:
        return json.load(f), []


def _test(case: ElementTree.Element) -> Dict[str, Any]:
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    outcome = next((kinds[child.tag] for child in case if child.tag in kinds), "passed")
    return {"name": case.get("name"), "outcome": outcome, "seconds": float(case.get("time", 0))}
