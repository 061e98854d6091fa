"""
Whether the runs of a study were made of the same things. Their commands are (run.py sees to it),
but what a command names may change from one call to the next: a config that somebody edits, a
teacher that is trained again, a dataset with other images under its name.
"""

from typing import Any, Dict, Hashable, Iterator, List, Sequence, Tuple

from ...config import is_lazy_file
from ...config.run_settings import LAZY, YAML, is_learned, keys_of
from ...runtime.record import read_records
from ..common.runs import options_for
from .design import UNLABELLED, StudyRun

Record = Dict[str, Any]  # a line of a run's runs.jsonl
MOST = 5  # differences that are told


def _keys(*names: str) -> Tuple[str, ...]:
    """Of settings of a run, in both forms of config."""
    return tuple(k for form in (YAML, LAZY) for n in names if (k := keys_of(form).get(n)))


# of the config of a run that distils, besides the baseline's, or in other places
DISTILLING = (
    "MODEL.TEACHER.", "MODEL.DISTILLER.", "MODEL.STUDENT.", "MODEL.META_ARCHITECTURE", "model.",
    *UNLABELLED,
)  # fmt: skip
# what is each run's own, or changes no result
ANY = (
    "VERSION", "CUDNN_BENCHMARK", "train.checkpointer",
    *_keys(
        "seed", "output_dir", "device", "num_workers", "trackers", "expected", "evaluate_teacher",
        "checkpoint_period", "log_period", "vis_period",
    ),
)  # fmt: skip


def changed_between(runs: Sequence[StudyRun]) -> List[str]:
    """
    Args:
        runs: of a study; those that have not begun, or not here, say nothing.

    Returns:
        A sentence for each thing that was not the same for runs which should have it in common.
    """
    records = [(run, record) for run in runs for record in read_records(run.folder)]
    records = [(run, record) for run, record in records if "config" in record]
    values: Dict[Tuple[str, Hashable], Dict[str, str]] = {}
    for run, record in records:
        for name, group, value in _things(run, record):
            values.setdefault((name, group), {}).setdefault(f"{value!r:.80}", run.name)
    differing: Dict[str, str] = {}  # each thing once
    for (name, _), of_runs in values.items():
        if len(of_runs) > 1:
            words = ", ".join(f"{value} ({run})" for value, run in of_runs.items())
            differing.setdefault(name, words)
    return [
        f"The runs were not made of the same things. {name}: {words}. It changed from one call to "
        "the next, with a file or with the version of this project: delete the folders of the "
        "former runs, or compare with care."
        for name, words in differing.items()
    ][:MOST]


def _things(run: StudyRun, record: Record) -> Iterator[Tuple[str, Hashable, Any]]:
    """What a run was made of: a name, who should have it in common, and a value."""
    student, whole = run.detector, (run.detector, run.method, run.teacher)
    own = tuple(_keys_of_options(run))
    for key, value in record["config"].items():
        if not key.startswith((*own, *ANY)):
            yield key, whole if key.startswith(DISTILLING) else student, value
    for name, file in record.get("files", {}).items():
        yield f"SHA-256 of the {name}'s file", run.teacher, file.get("sha256", "")[:8]
    for name, config in record.get("parts", {}).items():
        for key, value in config.items():
            if is_learned(key):
                yield f"the {name}'s {key}", run.teacher, value
    for name, parts in record.get("datasets", {}).items():
        for part in parts.keys() & {"annotations", "images"}:
            yield f"SHA-256 of the {part} of dataset '{name}'", "", parts[part][:8]


def _keys_of_options(run: StudyRun) -> List[str]:
    """What the study itself sets."""
    options = options_for(run.config, run.opts)
    if is_lazy_file(run.config):
        return [option.split("=")[0].lstrip("+~") for option in options]
    return options[::2]
