"""What tools/compare.py does."""

import argparse
import json
import os
import sys
from typing import Any, Dict, List

from ...config import read_config, run_settings
from ...config.lazy_config import allow
from ...runtime.lock import acquire
from ..common.command import set_up, setup_flags
from ..common.devices import default_jobs, default_threads, same_threads
from ..common.methods import methods_named
from ..common.paths import find_file
from ..common.result_files import BASELINE, make_output, write_text
from ..common.runs import option_pairs, run_all
from ..common.tables import print_table
from .design import Study, StudyRun, load_study
from .earlier import are_same, check_none_lost, commits_of, take_earlier
from .results import header, table, write_study
from .same import changed_between

COMMAND = "command.json"  # in a run's folder: what was run there


def compare(args: argparse.Namespace, command: str) -> int:
    """
    Run what is not finished and report everything.

    Args:
        args: of the command line.
        command: how to make it again, for the report.

    Returns:
        The exit code: 1 if a run failed in this call.
    """
    set_up(args)
    flags = setup_flags(args, args.register_coco)
    spec = load_study(args.study) if args.study else spec_of(args)
    study = Study(spec, args.work, flags, trusted=not args.study)
    study.check()
    output, runs = args.output or args.work, study.runs()
    make_output(output)  # not after the first run
    if not args.report_only:
        study.check_files()
        os.makedirs(args.work, exist_ok=True)
        acquire(args.work, "--work")
    _check_commands(runs)
    taken = take_earlier(runs, args.earlier, args.work)
    check_none_lost(runs, output, args.work)
    wanted = study.runs(args.only, (args.seeds or ()) if args.study else ())
    waiting = _waiting(wanted)
    if args.earlier:
        _say_taken(taken, runs, args.earlier)
    if not args.report_only and waiting:
        _say(changed_between(runs))
        print(f"{len(wanted) - len(waiting)} of {len(wanted)} runs are done already.", flush=True)
        _train(waiting, study, output, command, args)
    _report(study, output, command, args.images)
    _say(changed_between(runs))
    failed = [run for run in waiting if run.failure()]
    for run in failed:
        print(f"'{run.name}' {run.failure()}", file=sys.stderr)
    return 1 if failed and not args.report_only else 0


def _waiting(wanted: List[StudyRun]) -> List[StudyRun]:
    """What is not done, and the teachers of it whose checkpoints are not here."""
    missing = [run for run in wanted if not run.known()]
    needed = {run.after.folder for run in missing if run.after}
    return [r for r in wanted if not r.known() or (r.folder in needed and not r.finished())]


def _say_taken(taken: int, runs: List[StudyRun], files: List[str]) -> None:
    print(f"{taken} of {len(runs)} runs are taken from {', '.join(files)}.", flush=True)
    if taken:
        at = ", ".join(commits_of([run.earlier for run in runs if run.earlier]))
        print(f"They are of {at}: where a default has changed since, with the former.", flush=True)


def _train(
    waiting: List[StudyRun], study: Study, output: str, command: str, args: argparse.Namespace
) -> None:
    """Make the runs, and write the results as each ends."""
    runs = study.runs()
    _note_commands(runs)
    jobs = args.jobs or default_jobs()
    threads = same_threads(args.work, args.threads, default_threads(jobs, len(runs)))
    run_all(
        waiting, jobs, resume=True, keep_going=True, threads=threads,
        on_end=lambda run: _note_end(run, study, output, command),
    )  # fmt: skip


def _report(study: Study, output: str, command: str, images: int) -> None:
    """Write and print what there is."""
    write_study(study, output, command)
    for comparison in study.comparisons:
        print_table(comparison.name, header(comparison), table(comparison))
    from .report import write_report  # with matplotlib and the models

    write_report(study, output, command, images)
    print(f"{output}/report.html holds all of it.")


def _say(warnings: List[str]) -> None:
    for words in warnings:
        print(f"warning: {words}", file=sys.stderr, flush=True)


def _note_end(run: StudyRun, study: Study, output: str, command: str) -> None:
    if run.error:
        run.note_failure()
    write_study(study, output, command)


def spec_of(args: argparse.Namespace) -> Dict[str, Any]:
    """A study from the flags."""
    if not (args.config_file and args.teacher):
        raise ValueError("Give a study file, or --config-file and --teacher.")
    names = methods_named([name for name in args.methods if name != BASELINE])
    paths = [find_file(path) for path in args.config_file]
    for path in (*paths, find_file(args.teacher)):
        allow(path)  # Python or not: the user has named it
    detectors = dict(zip(_short_names(paths), ({"config": path} for path in paths)))
    for entry in detectors.values():
        entry["iterations"] = args.iterations or run_settings.value_of(
            read_config(entry["config"]), "max_iter"
        )
    return {
        "iterations": args.iterations or 0,
        "seeds": args.seeds or [1, 2, 3],
        "opts": option_pairs(args.opts),
        "teachers": {"teacher": {"config": args.teacher, "weights": args.teacher_weights or ""}},
        "detectors": detectors,
        "methods": {name: {"MODEL.DISTILLER.NAME": name} for name in names},
        "compare": [
            {"name": name, "detector": name, "methods": [BASELINE, *names]} for name in detectors
        ],
    }


def _short_names(paths: List[str]) -> List[str]:
    """Files' names, with their folders where two are called the same."""
    stems = [os.path.splitext(path)[0] for path in paths]
    short = [os.path.basename(stem) for stem in stems]
    return [stem if short.count(name) > 1 else name for name, stem in zip(short, stems)]


def _check_commands(runs: List[StudyRun]) -> None:
    """Raises ValueError if a run's folder holds another run, or one that nobody noted."""
    for run in runs:
        path = os.path.join(run.folder, COMMAND)
        commands = [command[1:] for command in run.commands()]
        if os.path.exists(path):
            with open(path) as f:
                earlier = json.load(f)
            if not any(are_same(earlier, command) for command in commands):
                raise ValueError(
                    f"{run.folder} holds another run than '{run.name}' is now. Earlier: "
                    f"{' '.join(earlier)} Now: {' '.join(commands[0])} "
                    "Delete the folder, or choose another --work."
                )
        elif run.finished():
            raise ValueError(
                f"{run.folder} holds a finished run and no {COMMAND}, so whether it is "
                f"'{run.name}' is unknown. Delete the folder, or choose another --work."
            )


def _note_commands(runs: List[StudyRun]) -> None:
    for run in runs:
        os.makedirs(run.folder, exist_ok=True)
        write_text(os.path.join(run.folder, COMMAND), json.dumps(run.command()[1:]))
