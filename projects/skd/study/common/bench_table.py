"""The rows that ``tools/benchmark.py`` measures, as a table."""

from typing import Any, Dict, List

from tabulate import tabulate

MB = 2**20
HEADER = ["name", "measured", "reference", "unit", "ratio", "range", "target", "GFLOP", "limit"]


def bench_table(rows: List[Dict[str, Any]]) -> str:
    """
    Args:
        rows: the content of its results.json; the one named "machine" says on what.

    Returns:
        A table in Markdown: of each row both sides, their ratio, and what is to be expected.
    """
    record = next(r for r in rows if r["name"] == "machine")
    cells = [_cells(r, record) for r in rows if r is not record]
    return tabulate(cells, HEADER, tablefmt="github", disable_numparse=True)


def _cells(r: Dict[str, Any], record: Dict[str, Any]) -> List[Any]:
    return [
        r["name"], f"{r['measured']:.3g}", f"{r['reference']:.3g}", r["unit"],
        f"{r['ratio']:.3f}", f"{r['min']:.3f} to {r['max']:.3f}",
        r.get("target") or (f"linear: {r['linear']:.2f}" if "linear" in r else ""),
        f"{r['flops'] / 1e9:.3g}" if "flops" in r else "", _limit(r, record),
    ]  # fmt: skip


def _limit(r: Dict[str, Any], record: Dict[str, Any]) -> str:
    """What the machine's rate of multiplying, or the maps that must be there, allow at best."""
    if r["unit"] == "MB":
        return f"{r['bytes'] / MB:.3g}" if "bytes" in r else ""
    if "flops" not in r:
        return ""
    return f"{r['flops'] / record['gemm_gflops'] / 1e9:.3g}"


def machine_line(rows: List[Dict[str, Any]]) -> str:
    """The machine that the rows were measured on, in words."""
    record = next(r for r in rows if r["name"] == "machine")
    where = record["gpu"] or f"{record['processor']}, {record['cores']} cores"
    return (
        f"{where} ({record['gemm_gflops']:.0f} GFLOPS in large products), torch "
        f"{record['torch'].split('+')[0]}, commit {record['commit']}"
    )
