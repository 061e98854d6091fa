"""docs/skd.ipynb, cell by cell at a tiny size."""

import json
import os

import matplotlib
import pytest
from matplotlib import pyplot as plt

from tests.helpers import read

matplotlib.use("Agg")
TINY = """    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("tiny_train",), ("tiny_val",)
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    return cfg
"""


@pytest.mark.slow
def test_the_notebook(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(read("docs/skd.ipynb"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells)  # made by who runs it
    space = {}
    for code in codes:
        code = code.replace("ITERATIONS = 400", "ITERATIONS = 2")
        exec(code.replace("    return cfg\n", TINY), space)
    printed = capsys.readouterr().out
    assert "baseline: box AP" in printed and "distilled: box AP" in printed
    first = [space["results"][name].keys() for name in ("baseline", "distilled")]
    assert first[0] == first[1] == {"bbox", "segm"}
    left, right = space["figure"].axes
    assert [len(line.get_xdata()) for line in left.lines] == [1, 1]
    assert [list(line.get_xdata()) for line in right.lines] == [[1, 2], [1, 2]]
    assert os.path.exists("output/notebook/distilled/model_final.pth")
    plt.close("all")
