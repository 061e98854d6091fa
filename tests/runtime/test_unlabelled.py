"""Images without labels behind the labelled ones in every batch: which, and where they go on."""

import logging
import multiprocessing

import pytest
from detectron2.data import DatasetMapper
from PIL import Image

from skd.runtime.loader import DataError, build_train_loader
from skd.runtime.reproducible import ReproducibleSteps
from skd.runtime.unlabelled import JoinedLoader, is_unlabelled, share_of, unlabelled_loader
from skd.runtime.user_errors import UserError
from tests.helpers import take
from tests.runtime.test_reproducible import RECORDS, At, noisy

OTHERS = [{"file_name": f"{i}.png", "image_id": 100 + i} for i in range(9)]


read = []  # by the mapper, in this process


def mapper(record):
    read.append(record["image_id"])
    if record.get("image_id") in (103, 104):
        raise OSError("truncated")
    sample = noisy(record)
    return {**sample, "image": sample["numbers"]}


def joined(workers=0, seed=5, most=2, images=2, records=OTHERS, **use):
    labelled = build_train_loader(
        RECORDS, mapper=mapper, total_batch_size=4, num_workers=workers, seed=seed
    )
    unlabelled = unlabelled_loader(labelled, records, images, most, "SKIP")
    return JoinedLoader(labelled, unlabelled, most, "SKIP", **use)


def test_the_labelled_images_are_those_of_a_training_without_the_others():
    baseline = build_train_loader(RECORDS, mapper=mapper, total_batch_size=4, seed=5)
    batches = take(joined(), 12)
    assert [[x for x in b if not is_unlabelled(x)] for b in batches] == take(baseline, 12)
    others = [[x for x in b if is_unlabelled(x)] for b in batches]
    assert all(len(b) == 2 for b in others)
    assert {x["image_id"] for b in others for x in b} == {*range(100, 109)} - {103, 104}


@pytest.mark.parametrize("workers", [0, 2])
def test_both_go_on_where_they_were(workers):
    whole = take(joined(), 10)
    hook = ReproducibleSteps(joined(), 5)
    hook.trainer = At(5)
    rest = joined(workers, seed=77)
    ReproducibleSteps(rest, 1).load_state_dict(hook.state_dict())
    assert take(rest, 4) == whole[6:]


def test_where_nothing_distils_none_is_read():
    """The labelled images are the same; what is read goes on with the next that is used."""
    whole, used = take(joined(), 5), take(joined(every=2, end=7), 10)
    assert [[x for x in b if not is_unlabelled(x)] for b in used] == [
        b[:4] for b in take(joined(), 10)
    ]
    others = [[x for x in b if is_unlabelled(x)] for b in used]
    assert [len(b) for b in others] == [2, 0, 2, 0, 2, 0, 2, 0, 0, 0]
    assert others[::2][:4] == [b[4:] for b in whole[:4]]
    loader = joined(every=2, end=7)
    batches = iter(loader)
    for _ in range(7):
        next(batches)
    read.clear()
    next(batches), next(batches)
    assert len(read) == 8 and max(read) < 100


@pytest.mark.parametrize("done", [3, 4, 8])
def test_they_go_on_where_they_were_in_a_training_that_uses_some(done):
    whole = take(joined(every=2, end=7), 12)
    hook = ReproducibleSteps(joined(), 5)
    hook.trainer = At(done - 1)
    rest = joined(seed=77, every=2, end=7)
    ReproducibleSteps(rest, 1).load_state_dict(hook.state_dict())
    assert take(rest, 4) == whole[done : done + 4]


def test_the_workers_end_with_the_last_that_is_used():
    batches = iter(joined(workers=1, end=2))
    next(batches), next(batches)
    before = len(multiprocessing.active_children())
    next(batches)
    assert len(multiprocessing.active_children()) == before - 1


def test_broken_images_are_left_out_by_name_up_to_a_limit(caplog):
    with caplog.at_level(logging.WARNING):
        loader = joined(most=2)
        take(loader, 20)
    said = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert sorted(loader.broken) == ["3.png", "4.png"] and len(said) == 2  # once each
    assert any("'3.png'" in x and "OSError: truncated" in x for x in said)
    with pytest.raises(DataError, match="2 images .* SKIP is 1: '[34].png', '[34].png'"):
        take(joined(most=1), 20)


def test_where_all_are_broken_it_ends():
    with pytest.raises(DataError, match="None of the images .* 2 in all.*OSError: truncated"):
        take(joined(records=OTHERS[3:5]), 1)


def test_few_images_may_be_broken_up_to_the_limit(caplog):
    """One that was tried for a place in a batch is not tried again for it, nor counted twice."""
    for seed in range(4):
        batches = take(joined(most=2, records=OTHERS[2:5], seed=seed), 20)
        assert {x["image_id"] for b in batches for x in b if is_unlabelled(x)} == {102}
    twice = [OTHERS[3], OTHERS[3], OTHERS[5]]  # a folder that is named twice
    assert joined(most=1, records=twice).broken == {} and take(joined(most=1, records=twice), 20)


def test_without_a_limit_the_first_that_is_broken_ends_it():
    """Not all are."""
    with pytest.raises(DataError, match="^1 image without labels cannot .* SKIP is 0: '[34].png'"):
        take(joined(most=0), 20)


def test_parts_of_a_batch_have_as_many_of_either_kind():
    batch = [*range(4), *({"unlabelled": [], "i": i} for i in range(2))]
    assert share_of(batch, 0, 2) == [0, 1, {"unlabelled": [], "i": 0}]
    assert share_of(batch, 1, 2) == [2, 3, {"unlabelled": [], "i": 1}]
    assert share_of(batch, 0, 1) == batch


def test_no_image_of_a_batch_is_lost():
    """A loader of the user's own may make batches of any kind and size."""
    for batch in ({"images": 1, "targets": 2}, ([1], [2])):
        assert share_of(batch, 0, 1) is batch  # as Detectron2 hands it on
    assert [share_of([*range(3)], i, 2) for i in range(2)] == [[0], [1, 2]]
    assert [share_of([0], i, 2) for i in range(2)] == [[0], [0]]  # the same gradient as of one
    with pytest.raises(UserError, match="accumulate is 2, and the loader's batch is a dict"):
        share_of({"images": 1}, 0, 2)


def test_a_wrong_size_in_the_file_leaves_no_image_out(tmp_path):
    """Labels would be shifted by it; here nothing depends on it."""
    Image.new("RGB", (8, 6)).save(tmp_path / "1.png")
    record = {"file_name": str(tmp_path / "1.png"), "image_id": 1, "width": 6, "height": 8}
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    labelled = build_train_loader([{**record, "width": 8, "height": 6}], mapper=mapper,
                                  total_batch_size=1, seed=5)  # fmt: skip
    (batch,) = take(unlabelled_loader(labelled, [record], 1, 0, "SKIP"), 1)
    assert (batch[0]["width"], batch[0]["height"]) == (8, 6) and not batch[0]["unlabelled"]


@pytest.mark.parametrize("grouping", [True, False])
def test_they_are_grouped_by_aspect_ratio_where_the_labelled_ones_are(grouping):
    sized = [{**r, "width": 4 + 4 * (i % 2), "height": 6} for i, r in enumerate(RECORDS)]
    others = [{**r, "width": 4 + 4 * (i % 2), "height": 6} for i, r in enumerate(OTHERS)]
    labelled = build_train_loader(
        sized, mapper=mapper, total_batch_size=4, aspect_ratio_grouping=grouping
    )
    loader = unlabelled_loader(labelled, others, 2, 2, "SKIP")
    pairs = take(loader.batches, 30)
    mixed = any(index % 2 != pair[0][1] % 2 for pair in pairs for _, index in pair)
    assert mixed != grouping


@pytest.mark.parametrize("name,hint", [("annotations", True), ("annotation", False)])
def test_a_mapper_that_needs_annotations_is_told_so(name, hint):
    def needs(record):
        return record[name]

    labelled = build_train_loader(RECORDS, mapper=needs, total_batch_size=4)
    with pytest.raises(DataError, match="None of the images without labels can be used") as error:
        take(unlabelled_loader(labelled, OTHERS, 2, 20, "SKIP"), 1)
    assert ("the mapper has to do without them here" in str(error.value)) == hint


@pytest.mark.parametrize("sample", [("image", 1), {"picture": 1}, [1]])
def test_a_mapper_that_makes_something_else_is_told_so(sample):
    labelled = build_train_loader(RECORDS, mapper=lambda _: sample, total_batch_size=4)
    said = f"the mapper gave a {type(sample).__name__}, and no dict with 'image'"
    with pytest.raises(DataError, match=said):
        take(unlabelled_loader(labelled, OTHERS, 2, 20, "SKIP"), 1)


def test_what_else_a_mapper_makes_is_kept_but_labels():
    labelled = build_train_loader(
        RECORDS, mapper=lambda r: {**r, "image": 1, "depth": 2, "instances": 3}, total_batch_size=4
    )
    (batch,) = take(unlabelled_loader(labelled, OTHERS, 2, 20, "SKIP"), 1)
    assert all(x["depth"] == 2 and "instances" not in x and is_unlabelled(x) for x in batch)
