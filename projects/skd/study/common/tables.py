"""Tables in a terminal and in Markdown. Names are shown as they are, whatever is in them."""

from typing import List

from tabulate import tabulate

NOT_RUN = "**Not run yet.**"  # in the place of a table of results that are not there


def print_table(title: str, header: List[str], rows: List[List[str]]) -> None:
    """The first column to the left, the others, numbers as a rule, to the right."""
    print(title)
    print(_table(header, rows, "outline"))


def markdown_table(header: List[str], rows: List[List[str]]) -> str:
    """The same in Markdown, with a line break at its end."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    return _table(escaped[0], escaped[1:], "pipe") + "\n"


def _table(header: List[str], rows: List[List[str]], form: str) -> str:
    lines = [[" ".join(cell.split()) for cell in row] for row in rows]
    align = ["left"] + ["right"] * (len(header) - 1)
    align = align if lines else None  # tabulate looks for columns in the rows
    return tabulate(lines, header, tablefmt=form, colalign=align, disable_numparse=True)
