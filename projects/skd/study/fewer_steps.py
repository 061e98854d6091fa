"""What is left of the gain where the teacher runs less: the table of docs/performance.md."""

import statistics

from .common.paired import ap_by_seed, gains, line_of, metrics_of, paired_table
from .common.result_files import BASELINE, read_study
from .common.tables import NOT_RUN

STUDY = "every"  # below docs/results
ALL_STEPS = "k = 1"  # the method that the others are compared with


def every_table(folder: str) -> str:
    """
    Args:
        folder: docs/results of a checkout.

    Returns:
        Markdown: gains over the baseline, and what part of the gain of all steps they are.
    """
    rows = [row for row in read_study(folder, STUDY) if row["method"] != "teacher"]
    run = dict.fromkeys(row["method"] for row in rows if row["status"] == "done")
    methods = [method for method in run if method != BASELINE]
    table = paired_table([line_of(method, rows, method, rows) for method in methods])
    if table == NOT_RUN:
        return table
    baseline = ap_by_seed(rows, BASELINE)
    mean = {
        method: {key: statistics.mean(gains(ap, baseline, key)) for key in metrics_of(ap, baseline)}
        for method, ap in ((method, ap_by_seed(rows, method)) for method in methods)
    }
    kept = [
        f"{method}: "
        + " / ".join(f"{gain / mean[ALL_STEPS][key]:.0%}" for key, gain in own.items())
        for method, own in mean.items()
        if method != ALL_STEPS
    ]
    return f"{table}\n\nPart of the gain of {ALL_STEPS} (box / mask): {'; '.join(kept)}."
