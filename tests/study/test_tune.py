"""tools/tune.py: the search on its own, its runs as small processes, and once for real."""

import json
import os
import re
import shlex
import sys
from types import SimpleNamespace

import pytest
import yaml
from detectron2.config import LazyConfig, instantiate

from skd import add_skd_config, distill
from skd.config import lazy_config
from skd.config.methods import build_balance
from skd.config.run_settings import LAZY as LAZY_FORM
from skd.config.run_settings import YAML
from skd.config.safe_yaml import UnsafeConfigError
from skd.study.common.command import RunError
from skd.study.compare.design import Study
from skd.study.tune import run as tune
from skd.study.tune.held_out import hold_out
from skd.study.tune.results import _rows, no_better
from skd.study.tune.run import Clock, TrialRun, Tuning, work_off
from skd.study.tune.search import PROPORTION, SHARE, UNTIL, WARMUP, Rungs, Search, Space, options
from tests.helpers import LAZY, tiny_config
from tests.processes import parser_of, run_script

FIRST = {"SHARE": 1.0, "DECAY": "none", "WARMUP": 0.0, "UNTIL": 0.5}
SPACE = Space(("am", "at"), ("p2,p3", "p3"), FIRST)
ONE_TERM = Space(("pkd",), ("p2,p3",), FIRST)
RUNGS = Rungs.of(40, 3, 2)  # 10, 20, 40


def search_in(folder, methods=("A", "B"), **kwargs):
    return Search(str(folder / "journal.log"), dict.fromkeys(methods, SPACE), RUNGS, **kwargs)


def test_rungs_by_hand():
    assert RUNGS.period == 10 and RUNGS.steps() == [10, 20]
    assert Rungs.of(100, 3, 3).steps() == [11, 33] and Rungs.of(9, 3, 3).steps() == [1, 3]
    assert Rungs.of(7, 1, 2) == Rungs(7, 2, 7) and not Rungs.of(7, 1, 2).steps()


@pytest.mark.parametrize(
    "arguments,words",
    [((3, 3, 2), "before the first"), ((9, 0, 2), "--rungs is 0"), ((9, 2, 1), "--factor is 1")],
)
def test_rungs_that_cannot_be(arguments, words):
    with pytest.raises(ValueError, match=words):
        Rungs.of(*arguments)


def test_every_method_has_as_many_trials(tmp_path):
    search = search_in(tmp_path, trials=2)
    asked = [search.next() for _ in range(5)]
    assert [(a.method, a.number) for a in asked[:4]] == [("A", 0), ("B", 0), ("A", 1), ("B", 1)]
    assert asked[4] is None
    assert search_in(tmp_path, trials=2).next() is None
    assert search_in(tmp_path, trials=3).next().number == 2  # more, later


def test_minutes_end_between_rounds(tmp_path):
    spent = [0.0]
    search = search_in(tmp_path, minutes=25, spent=lambda: spent[0])
    methods = []
    for minutes in (0, 9, 10, 15, 20, 30):  # a round takes 10, so that the third would end at 30
        spent[0] = minutes
        attempt = search.next()
        methods.append(attempt and attempt.method)
    assert methods == ["A", "B", "A", "B", None, None]


def test_the_first_trial_is_the_default_and_others_are_within_limits(tmp_path):
    search = search_in(tmp_path, ("A",), trials=9)
    first, *others = iter(search.next, None)
    assert first.settings == {**FIRST, "at": 1.0, "LEVELS": "p2,p3"}
    assert len({a.settings["SHARE"] for a in others}) == 8
    for settings in (a.settings for a in others):
        assert SHARE[0] <= settings["SHARE"] <= SHARE[1]
        assert PROPORTION[0] <= settings["at"] <= PROPORTION[1]
        assert WARMUP[0] <= settings["WARMUP"] <= WARMUP[1]
        assert UNTIL[0] <= settings["UNTIL"] <= UNTIL[1]


def test_a_default_out_of_limits_is_brought_in():
    given = {"SHARE": 50, "DECAY": "linear", "WARMUP": 0.9, "UNTIL": 0.1, "at": 0}
    limited = {"SHARE": 10.0, "DECAY": "linear", "WARMUP": 0.2, "UNTIL": 0.25, "at": 0.1}
    assert Space(("am", "at"), ("p2",), given).start() == limited


def test_a_trial_among_the_worse_half_is_given_up(tmp_path):
    search = search_in(tmp_path, ("A",), trials=9)
    a, b, c, d = (search.next() for _ in range(4))
    assert not search.report(a, 10, 10.0)  # nobody to compare with
    assert search.report(b, 10, 5.0) and b.pruned
    assert not search.report(c, 10, 20.0)
    assert not search.report(a, 20, 11.0) and search.report(c, 20, 10.5)
    assert search.report(d, 10, 12.0) is False  # second of four
    assert search.report(b, 10, 99.0)  # what is noted stays
    search.finish(a, 30.0)
    search.finish(d, 40.0)
    again = search_in(tmp_path, ("A",), trials=9)
    states = [x.state.name for x in again.attempts()]
    assert states == ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE"]
    assert again.best("A").number == 3
    assert search_in(tmp_path, ("B",)).best("B") is None


def play(search):
    """Values that depend on the settings; a trial then ends or is given up."""
    attempt = search.next()
    if attempt is None:
        return None
    value = -abs(attempt.settings["SHARE"] - 3)
    if not any(search.report(attempt, step, value) for step in RUNGS.steps()):
        search.finish(attempt, value)
    return attempt.settings


def test_interruptions_do_not_change_what_is_tried(tmp_path):
    (tmp_path / "once").mkdir()
    (tmp_path / "often").mkdir()
    search = search_in(tmp_path / "once", trials=8, seed=3)
    once = list(iter(lambda: play(search), None))
    often = [play(search_in(tmp_path / "often", trials=8, seed=3)) for _ in range(16)]
    assert once == often and len(once) == 16
    (tmp_path / "other").mkdir()
    other = search_in(tmp_path / "other", trials=8, seed=4)
    assert [play(other) for _ in range(3)][2] != once[2]


def test_an_interrupted_trial_goes_on(tmp_path):
    search = search_in(tmp_path, ("A",), trials=2)
    a, b = search.next(), search.next()
    search.report(a, 10, 10.0)
    again = search_in(tmp_path, ("A",), trials=2)
    c, d = again.attempts()
    assert c.running and c.settings == a.settings and d.settings == b.settings
    assert not again.report(c, 10, 10.0) and again.report(d, 10, 1.0)
    again.finish(c, 20.0)
    assert again.next() is None and again.best("A").settings == a.settings


def test_a_proposal_cut_off_halfway_is_completed(tmp_path):
    search_in(tmp_path, ("A",)).studies["A"].ask()  # no setting suggested yet
    (attempt,) = search_in(tmp_path, ("A",)).attempts()
    assert set(attempt.settings) == {"SHARE", "DECAY", "WARMUP", "UNTIL", "at", "LEVELS"}


def test_settings_as_keys():
    settings = {"SHARE": 0.123456, "DECAY": "cosine", "WARMUP": 0.1, "UNTIL": 0.3333}
    settings.update({"at": 2.0, "LEVELS": "p3"})
    keys = options("PKD", settings, SPACE, 400, YAML)
    assert keys == {
        "MODEL.DISTILLER.NAME": "PKD",
        "MODEL.DISTILLER.BALANCE.ENABLED": True,
        "MODEL.DISTILLER.BALANCE.SHARE": 0.123,
        "MODEL.DISTILLER.BALANCE.DECAY": "cosine",
        "MODEL.DISTILLER.BALANCE.WARMUP": 40,
        "MODEL.DISTILLER.BALANCE.UNTIL": 0.333,
        "MODEL.DISTILLER.BALANCE.SHARES": "[['am', 1.0], ['at', 2.0]]",
        "MODEL.DISTILLER.LEVELS": "['p3']",
    }
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_skd_config(cfg)
    cfg.merge_from_list([str(part) for pair in keys.items() for part in pair])
    balance = build_balance(cfg)
    assert balance.proportions == {"am": 1.0, "at": 2.0} and balance.settings.warmup == 40
    assert "MODEL.DISTILLER.LEVELS" not in options(
        "PKD", {**settings, "LEVELS": "p2,p3"}, SPACE, 9, YAML
    )
    of_one_term = options("PKD", settings, ONE_TERM, 9, YAML)
    assert of_one_term["MODEL.DISTILLER.BALANCE.SHARES"] == "[]"  # whatever the config has
    lazy = options("PKD", settings, SPACE, 400, LAZY_FORM)
    assert list(lazy.values()) == list(keys.values())
    assert list(lazy)[0] == "MODEL.DISTILLER.NAME" and list(lazy)[-1] == "model.levels"
    names = ("enabled", "share", "decay", "warmup", "until", "shares")
    assert list(lazy)[1:-1] == [f"model.balance.{name}" for name in names]


CONTENT = {
    "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(40)],
    "annotations": [{"id": 1 + i, "image_id": i % 40, "category_id": 1} for i in range(80)],
    "categories": [{"id": 1, "name": "x"}],
}


def test_images_are_held_out_of_training(tmp_path):
    (tmp_path / "all.json").write_text(json.dumps(CONTENT))
    given = [("mine", str(tmp_path / "all.json"), "images"), ("val", "val.json", "images")]
    parts = hold_out(given, ["mine"], 5, str(tmp_path / "split"))
    read = {part: json.load(open(sets[0][1])) for part, sets in parts.items()}
    ids = {part: {x["id"] for x in content["images"]} for part, content in read.items()}
    assert ids["train"] | ids["test"] == set(range(40)) and not ids["train"] & ids["test"]
    assert 0 < len(ids["test"]) < 20
    assert [name for name, *_ in parts["test"]] == ["mine_test"]
    with pytest.raises(ValueError, match="give --train and --test"):
        hold_out(given, ["coco_2017_train"], 5, str(tmp_path / "split"))
    with pytest.raises(ValueError, match="--folds is 1"):
        hold_out(given, ["mine"], 1, str(tmp_path / "split"))
    (tmp_path / "mine.json").write_text("[]")
    with pytest.raises(ValueError, match="mine.json.*is a list; it must be an object"):
        hold_out([("mine", str(tmp_path / "mine.json"), "images")], ["mine"], 5, str(tmp_path))


# A training as far as tune.py sees one. With a value below 0 it waits to be stopped.
TRAINING = """
import json, os, signal, sys, time
folder, value, begin = sys.argv[1], float(sys.argv[2]), int(os.path.exists(sys.argv[1] + "/last"))
def stop(number, frame):
    open(folder + "/model_0000009.pth", "w").close()
    open(folder + "/stopped", "w").close()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
if value == 13:
    sys.exit("no luck")
if value == 14:
    sys.exit("FloatingPointError: Loss is not finite")
for iteration in (10, 20, 30, 40):
    with open(folder + "/metrics.json", "a") as f:
        f.write(json.dumps({"iteration": iteration - 1, "bbox/AP": abs(value)}) + "\\n")
    while value < 0:
        time.sleep(0.02)
        if os.getppid() == 1:
            sys.exit(1)
open(folder + "/model_final.pth", "w").close()
"""


class Training(TrialRun):
    def command(self):
        return [sys.executable, "-c", TRAINING, self.folder, str(self.value)]


@pytest.fixture
def trainings(tmp_path, monkeypatch):
    """A function from values to a function that makes the runs of a search, and the baseline."""
    monkeypatch.setattr(tune, "POLL", 0.02)
    (tmp_path / "c.yaml").write_text("VERSION: 2\n")

    def make(*values, baseline=1.0):
        def run_of(attempt):
            name = f"{attempt.method}{attempt.number}" if attempt else "baseline"
            run = Training(name, str(tmp_path / "c.yaml"), str(tmp_path / name), 40)
            run.attempt = attempt
            run.value = values[attempt.number] if attempt else baseline
            return runs.setdefault(name, run)

        runs = {}
        return run_of, run_of(None)

    return make


def test_runs_that_fall_behind_are_stopped(trainings, tmp_path):
    search = search_in(tmp_path, ("A",), trials=3)
    ended = []
    run_of, baseline = trainings(10.0, -5.0, 20.0)
    work_off(search, run_of, baseline, 1, 1, on_end=ended.append)
    assert [run.name for run in ended] == ["baseline", "A0", "A1", "A2"]
    assert [a.state.name for a in search.attempts()] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert (tmp_path / "A1" / "stopped").exists() and not ended[2].error
    assert not (tmp_path / "A1" / "model_0000009.pth").exists()  # it will not go on
    assert (tmp_path / "A2" / "model_final.pth").exists()
    row = ended[2].result()
    assert row["status"] == "pruned" and row["ap"] == {"bbox/AP": 5.0} and row["curve"] == [[10, 5]]
    ended.clear()
    work_off(search_in(tmp_path, ("A",), trials=3), run_of, baseline, 1, 1, on_end=ended.append)
    assert not ended  # all is done


def test_a_failed_trial_is_tried_again_and_a_failed_baseline_ends_it(trainings, tmp_path):
    search = search_in(tmp_path, ("A",), trials=2)
    run_of, baseline = trainings(13, 10.0)
    work_off(search, run_of, baseline, 2, 1)
    assert [a.state.name for a in search.attempts()] == ["RUNNING", "COMPLETE"]
    failed = run_of(search.attempts()[0])
    assert "no luck" in failed.error and failed.result()["status"] == "failed"
    search = search_in(tmp_path, ("A",), trials=2)
    run_of, baseline = trainings(11.0, 10.0)
    work_off(search, run_of, baseline, 2, 1)
    assert search.best("A").number == 0 and len(search.attempts()) == 2
    os.remove(tmp_path / "baseline" / "model_final.pth")
    with pytest.raises(RunError, match="the baseline ended with 1"):
        work_off(search, *trainings(baseline=13), 1, 1)


@pytest.mark.parametrize("value,told", [(9.0, ["A"]), (10.0, ["A"]), (11.0, [])])
def test_a_search_that_found_nothing_better_than_the_baseline_says_so(
    value, told, trainings, tmp_path
):
    search = search_in(tmp_path, ("A",), trials=1)
    run_of, baseline = trainings(value, baseline=10.0)
    assert no_better({}, baseline) == []  # it has not run
    work_off(search, run_of, baseline, 1, 1)
    found = no_better({"A": run_of(search.best("A"))}, baseline)
    assert [re.search(r"No trial of (\S+) is better", words).group(1) for words in found] == told


def test_a_trial_that_diverged_is_decided(trainings, tmp_path):
    """It would diverge again in every call, and the search would never learn of it."""
    run_of, baseline = trainings(14, 10.0)
    work_off(search_in(tmp_path, ("A",), trials=2), run_of, baseline, 1, 1)
    search = search_in(tmp_path, ("A",), trials=2)
    assert [a.state.name for a in search.attempts()] == ["PRUNED", "COMPLETE"]
    run_of, baseline = trainings(11.0, 10.0)  # of another call
    work_off(search, run_of, baseline, 1, 1)
    first = run_of(search.attempts()[0])
    assert first.process is None and search.best("A").number == 1
    row = first.result()
    assert row["status"] == "failed" and "Loss is not finite" in row["error"]


def test_an_interruption_stops_the_runs(trainings, tmp_path):
    search = search_in(tmp_path, ("A",), trials=2)

    def interrupt(run):
        raise KeyboardInterrupt

    run_of, baseline = trainings(-1.0, -2.0)
    with pytest.raises(KeyboardInterrupt):
        work_off(search, run_of, baseline, 3, 1, on_end=interrupt)
    runs = [run_of(a) for a in search.attempts()]
    assert len(runs) == 2 and all(run.process.poll() is not None for run in runs)
    # they go on with the next call, and one whose end nobody saw is not run again
    for name in ("A0", "A1"):
        with open(tmp_path / name / "metrics.json", "w") as f:
            f.write(json.dumps({"iteration": 39, "bbox/AP": 7.0}) + "\n")
        (tmp_path / name / "model_final.pth").touch()
    again = search_in(tmp_path, ("A",), trials=2)
    work_off(again, *trainings(13, 13), 1, 1)
    assert [a.state.name for a in again.attempts()] == ["COMPLETE", "COMPLETE"]


def test_a_metric_that_there_is_not(trainings, tmp_path):
    search = search_in(tmp_path, ("A",), trials=1)
    with pytest.raises(ValueError, match="--metric is segm/AP; it must be one of bbox/AP"):
        work_off(search, *trainings(1.0), 1, 1, "segm/AP")


def test_methods_are_ranked_by_the_metric_of_the_search(tmp_path):
    (tmp_path / "c.yaml").write_text("VERSION: 2\n")
    runs = {}
    for name, box, mask in (("A", 9.0, 1.0), ("B", 8.0, 2.0)):
        runs[name] = TrialRun(name, str(tmp_path / "c.yaml"), str(tmp_path / name), 40, method=name)
        runs[name].attempt = SimpleNamespace(number=0, settings={}, pruned=False)
        (tmp_path / name).mkdir()
        row = {"iteration": 39, "bbox/AP": box, "segm/AP": mask}
        (tmp_path / name / "metrics.json").write_text(json.dumps(row) + "\n")
    results = [{"method": name, "trial": 0, "status": "done"} for name in runs]
    for metric, best in (("", "A"), ("segm/AP", "B")):
        tuning = SimpleNamespace(
            spaces=runs, args=SimpleNamespace(metric=metric), run_of=runs.get,
            search=SimpleNamespace(best=lambda method: method),
        )  # fmt: skip
        assert _rows(tuning, results, ["bbox/AP", "segm/AP"])[1][0] == best


def test_minutes_add_up_over_calls(tmp_path):
    (tmp_path / "minutes.json").write_text("7.5")
    clock = Clock(str(tmp_path / "minutes.json"))
    assert 7.5 <= clock() < 8.5
    clock.save()
    assert Clock(str(tmp_path / "minutes.json")).before >= 7.5


@pytest.fixture
def arguments(teacher_files, shapes, tmp_path):
    """A function from a student's config to the arguments of a search on a few images."""
    folder = os.path.dirname(next(p for p in _files(shapes) if "skd_shapes_train" in p))

    def of(name, text):
        (tmp_path / name).write_text(text)
        return [
            "--config-file", tmp_path / name, "--teacher", teacher_files[0], "--teacher-weights",
            teacher_files[1], "--register-coco", "mine", f"{folder}/annotations.json",
            f"{folder}/images", "--folds", 2, "--iterations", 4, "--rungs", 2,
            "--work", tmp_path / "work",
        ]  # fmt: skip

    return of


@pytest.fixture
def command_line(arguments):
    return arguments("student.yaml", tiny_config(DATASETS__TRAIN="('mine',)").dump())


@pytest.fixture
def lazy_command_line(arguments):
    return arguments("student.py", LAZY.replace("skd_shapes_train", "mine"))


def _files(folder):
    return [os.path.join(p, n) for p, _, names in os.walk(folder) for n in names if "json" in n]


def parsed(command_line, *more):
    return parser_of("tools/tune.py").parse_args([str(x) for x in [*command_line, *more]])


@pytest.fixture
def catalog():
    """Registered datasets are forgotten afterwards."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "mine" in catalog.list():
            catalog.remove("mine")


def forget():
    from detectron2.data import DatasetCatalog, MetadataCatalog

    DatasetCatalog.remove("mine")
    MetadataCatalog.remove("mine")


def test_what_a_trial_runs(command_line, catalog, tmp_path):
    methods = ["StructuredDistiller", "PKD"]
    command_line += ["--opts", "SOLVER.BASE_LR", "1"]  # a whole number, as train_net takes it
    tuning = Tuning(parsed(command_line, "--trials", 2, "--methods", *methods))
    space = tuning.spaces["StructuredDistiller"]
    assert set(space.terms) == {"structured_am", "structured_at", "structured_nl"}
    assert space.levels == ["p2,p3,p4,p5,p6", "p3,p4,p5,p6", "p2,p3,p4,p5"]
    assert tuning.spaces["PKD"].terms == ["pkd"]
    run = tuning.run_of(tuning.search.next())
    words = " ".join(run.command())
    assert "DATASETS.TRAIN ['mine_train'] DATASETS.TEST ['mine_test']" in words
    assert "TEST.EVAL_PERIOD 2 SEED 1" in words and "SOLVER.MAX_ITER 4" in words
    assert "--register-coco mine_test " in words and "--teacher " in words
    baseline = " ".join(tuning.baseline.command())
    assert "--teacher" not in baseline and "MODEL.DISTILLER" not in baseline
    assert "TEST.EVAL_PERIOD 2 SEED 1" in baseline
    forget()
    with pytest.raises(ValueError, match="another --seed"):
        Tuning(parsed(command_line, "--trials", 2, "--seed", 2))


@pytest.mark.parametrize(
    "more,words",
    [
        ([], "no budget"),
        (["--trials", 0], "--trials is 0"),
        (["--trials", 1, "--methods", "PDK"], "--methods has PDK"),
        (["--trials", 1, "--levels", "p3,p9"], "--levels has p3,p9"),
        (["--trials", 1, "--rungs", 9], "--rungs is 9"),
        (["--trials", 1, "--test", "mine"], "trained on"),
        (["--trials", 1, "--train", "other"], "give --train and --test"),
        (["--trials", 1, "--opts", "MODEL.DISTILLER.BALANCE.RAMP", "4"], "WARMUP and "),
        (["--trials", 1, "--opts", "MODEL.DISTILLER.COMBINE", "[['AT', 1]]"], "COMBINE is set"),
    ],
)
def test_an_error_comes_before_anything_runs(more, words, command_line, catalog, tmp_path):
    with pytest.raises(ValueError) as error:
        Tuning(parsed(command_line, *more))
    assert words in str(error.value)
    assert not (tmp_path / "work" / "journal.log").exists()


def test_what_a_trial_of_a_lazy_config_runs(lazy_command_line, catalog):
    opts = ["optimizer.lr=1", "model.student.roi_heads.num_classes=6"]
    opts += ["model.balance.share=2.0", "model.balance.shares=[[structured_at,0.5]]"]
    tuning = Tuning(parsed(lazy_command_line, "--trials", 1, "--opts", *opts))
    space = tuning.spaces["StructuredDistiller"]
    assert space.levels == ["p2,p3,p4,p5,p6", "p3,p4,p5,p6", "p2,p3,p4,p5"]
    assert space.first["SHARE"] == 2.0 and space.first["structured_at"] == 0.5
    run = tuning.run_of(tuning.search.next())
    words, baseline = run.command(), tuning.baseline.command()
    split = [
        "dataloader.train.dataset.names=['mine_train']",
        "dataloader.test.dataset.names=['mine_test']",
        "dataloader.evaluator.dataset_name='mine_test'", "train.eval_period=2", "train.seed=1",
    ]  # fmt: skip
    assert {*split, *opts, "train.max_iter=4", "model.balance.decay=none"} <= set(words)
    assert "--teacher" in words and "--teacher" not in baseline
    # the student's part of the options, where its keys lie without a teacher
    assert {*split, "optimizer.lr=1", "model.roi_heads.num_classes=6"} <= set(baseline)
    assert [part for part in baseline if part.startswith("model.")] == [
        "model.roi_heads.num_classes=6"
    ]


DISTILS = """
import skd
skd.distill(config, "t.yaml", "w.pth")
model = config.model
"""


@pytest.mark.parametrize(
    "more,words",
    [
        (
            ["--opts", "dataloader.train.dataset.names=a"],
            "dataloader.train.dataset.names is ('a',)",
        ),
        (["--train", "mine", "--test", "other"], "--test names 'other', which nobody has"),
        (["--opts", "dataloader.train.dataset=null"], "dataloader.train.dataset.names is missing"),
        (["--opts", "dataloader.evaluator=null"], "dataloader.evaluator.dataset_name is missing"),
        (["--train", "mine", "--test", "tiny_val", "tiny_train"], "dataset_name is of one dataset"),
        (["--opts", "model.distiller.weight_am=1"], "--opts has model.distiller.weight_am"),
        (["--opts", "MODEL.DISTILLER.NAME", "PKD"], "--opts has model.distiller; leave it out"),
        (["--opts", "model.balance.ramp=1"], "model.balance.warmup and model.balance.ramp are 1"),
        (["--opts", "model.balance=null"], "it must be a GradientBalance"),
        (["--opts", "train.seed", "3", "SEED"], "--opts ends with SEED, a key"),
        (["--opts", "SOLVER.STEPS", "()"], "SOLVER.STEPS has no counterpart in a LazyConfig"),
    ],
)
def test_errors_of_a_lazy_config_are_in_its_words(
    more, words, lazy_command_line, catalog, tmp_path
):
    with pytest.raises(ValueError) as error:
        Tuning(parsed(lazy_command_line, "--trials", 1, *more))
    assert words in str(error.value)
    assert not (tmp_path / "work" / "journal.log").exists()


def test_a_lazy_config_that_distils_is_refused(arguments, catalog):
    command_line = arguments("student.py", LAZY + DISTILS)
    with pytest.raises(ValueError, match="student.py', which distils; it must be"):
        Tuning(parsed(command_line, "--trials", 1))


@pytest.mark.slow
def test_a_search_for_real(command_line, shapes, tmp_path):
    def call(trials):
        return run_script("tools/tune.py", *command_line, "--trials", trials, datasets=shapes)

    printed = call(1)
    assert "StructuredDistiller, trial000: done" in printed and "baseline: done" in printed
    first = tmp_path / "work" / "StructuredDistiller" / "trial000" / "model_final.pth"
    before = os.path.getmtime(first)
    call(2)
    assert os.path.getmtime(first) == before
    with open(tmp_path / "work" / "results.jsonl") as f:
        rows = [json.loads(line) for line in f]
    assert [(row["method"], row.get("trial")) for row in rows] == [
        ("baseline", None), ("StructuredDistiller", 0), ("StructuredDistiller", 1)
    ]  # fmt: skip
    assert all(row["status"] in ("done", "pruned") and "bbox/AP" in row["ap"] for row in rows)
    page = (tmp_path / "work" / "README.md").read_text()
    assert "Made by" in page and "tools/tune.py" in page and "tools/compare.py" in page
    study = yaml.safe_load((tmp_path / "work" / "confirm.yaml").read_text())
    assert len(Study(study, str(tmp_path / "confirm")).runs()) >= 6


@pytest.mark.slow
def test_a_search_of_a_lazy_config_for_real(lazy_command_line, shapes, tmp_path, monkeypatch):
    opts = ["model.student.roi_heads.batch_size_per_image=32", "optimizer.lr=0.002"]
    more = ["--trials", 1, "--methods", "PKD", "--opts", *opts]
    printed = run_script("tools/tune.py", *lazy_command_line, *more, datasets=shapes)
    assert "PKD, trial000: done" in printed and "baseline: done" in printed
    with open(tmp_path / "work" / "results.jsonl") as f:
        baseline, row = [json.loads(line) for line in f]
    assert "bbox/AP" in row["ap"] and "segm/AP" in baseline["ap"]
    assert row["settings"]["model.balance.share"] == 3.0
    page = (tmp_path / "work" / "README.md").read_text()
    (settings,) = re.findall("^model.distiller=.*", page, re.MULTILINE)
    cfg = LazyConfig.load(str(tmp_path / "student.py"))
    distill(cfg, "t.yaml", "w")
    cfg = lazy_config.override(cfg, shlex.split(settings))  # as train_net.py takes it
    assert type(instantiate(cfg.model.distiller)).__name__ == "PKD"
    assert instantiate(cfg.model.balance).settings.until == 0.333
    study = Study(yaml.safe_load((tmp_path / "work" / "confirm.yaml").read_text()), "work")
    with pytest.raises(UnsafeConfigError, match="student.py', a LazyConfig, which runs code"):
        study.check()
    trust, _, command = next(x for x in page.splitlines() if "tools/compare.py" in x).partition(" ")
    assert command.startswith("python tools/compare.py")
    monkeypatch.setenv(*trust.split("="))
    study.check()
    teacher, *runs = sorted(study.runs(), key=lambda run: run.method != "teacher")
    assert [run.method for run in runs] == ["baseline", "PKD"] * 3
    assert "model.roi_heads.batch_size_per_image=32" in runs[0].command()
    assert {*opts, *shlex.split(settings)} <= set(runs[1].command())
    assert not set(opts) & set(teacher.command())  # a YAML config
