"""The table of how often the doctor is right; its runs are in docs/results/doctor."""

import json
from argparse import Namespace

import pytest

from skd.study.doctor import Finding, Verdict, table
from skd.study.doctor.cases import OTHERS, Other, faults, sound


def test_ten_faults_each_in_two_detectors_and_twenty_sound_runs():
    names = [case.name.replace("no better", "weaker") for case in faults()]
    assert len(set(names)) == 10 and all(names.count(name) >= 2 for name in set(names))
    assert all(case.cause for case in faults()) and not any(case.cause for case in sound())
    assert len(sound()) >= 20
    cases = [*faults(), *sound()]
    assert len({case.seed for case in cases}) == len(cases)


def test_every_config_distils_from_the_case_s_teacher():
    other = Other("photographs", 7, ("configs/real/light_teacher_mask_rcnn.yaml", "t.pth"))
    for case in [*faults(), *sound()]:
        cfg = case.config("trained.pth", 100, "skd_shapes_val", other)
        assert cfg.SEED == case.seed + 100 and cfg.MODEL.TEACHER.CONFIG_FILE
        assert (cfg.DATASETS.TEST == ("photographs",)) == case.other
        assert (cfg.MODEL.TEACHER.WEIGHTS == "t.pth") == (case.teacher == OTHERS)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command without --other, whose doctor finds what it is told to."""
    seen = []

    def run(found):
        def examine(cfg, **given):
            seen.append(cfg.SEED)
            return Verdict(findings=[Finding(name, "why") for name in found])

        monkeypatch.setattr(table, "examine", examine)
        args = Namespace(
            work=str(tmp_path / "work"), output=str(tmp_path / "out"), seed=0, other=None,
            other_teacher=None, split="skd_shapes_val", iterations=1, images=1, threads=1,
        )  # fmt: skip
        return table.doctor_table(args, "the command")

    monkeypatch.setattr(table, "_train", lambda args: "trained.pth")
    monkeypatch.setattr(table, "acquire", lambda *args: None)  # held until the process ends
    return run, seen, tmp_path / "out"


def test_a_fault_is_named_first_and_a_sound_run_is_left_in_peace(run):
    run, seen, output = run
    assert run(["weight", "levels"]) == 1
    text = (output / "table.md").read_text()
    assert "### Faults: 4 of 18 named" in text  # of the 23, five need other data
    assert "### Sound runs: 0 of 20 without a finding" in text and "the command" in text
    # again: what is done is not examined anew
    examined = len(seen)
    assert examined == 38 and run([]) == 1 and len(seen) == examined
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [r["planted"] for r in rows if r["planted"] and r["right"]] == ["weight"] * 4
