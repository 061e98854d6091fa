"""Results in the repository and the study files that they are of."""

import os

import pytest

from skd.study.common.result_files import finished
from skd.study.compare.design import Study, load_study
from skd.study.compare.earlier import take_earlier
from tests.helpers import ROOT

# below docs/results, and below configs
STUDIES = {
    "real/carparts": "real/carparts.yaml",
    "real/voc": "real/voc.yaml",
    "real/retinanet": "real/retinanet.yaml",
    "real/two_stage_teacher": "real/two_stage_teacher.yaml",
    "real/carparts_longer": "real/carparts_longer.yaml",
    "real/other_data": "real/other_data.yaml",
    "heads/carparts": "real/heads.yaml",
    "heads/dense": "real/dense_heads.yaml",
    "heads/shapes": "shapes/heads.yaml",
    "unlabelled/carparts": "real/unlabelled.yaml",
    "unlabelled/shapes": "shapes/unlabelled.yaml",
    "flag": "shapes/flag.yaml",
    "flag_longer": "shapes/flag_longer.yaml",
    "flag_pretrained": "shapes/flag_pretrained.yaml",
    "flag_pretrained_short": "shapes/flag_pretrained_short.yaml",
}


@pytest.mark.parametrize("results,config", STUDIES.items())
def test_published_runs_are_those_of_their_study(results, config, tmp_path, monkeypatch):
    """So that a study can go on, and none of it is run again."""
    monkeypatch.chdir(ROOT)
    study = Study(load_study(f"configs/{config}"), str(tmp_path), trusted=True)
    path = os.path.join("docs", "results", results, "results.jsonl")
    runs = study.runs()
    done = finished(path)
    take_earlier(runs, [path], str(tmp_path))
    assert done and sum(run.earlier is not None for run in runs) == len(done)
