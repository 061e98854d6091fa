"""
Images without labels: in every batch behind those with labels, and marked.

They have a loader of their own, so the labelled ones are those of a training without them, in the
same order and with the same augmentation.
"""

import logging
import math
import random
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from detectron2.data import DatasetFromList
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from .loader import (
    DataError,
    GroupedBatches,
    MappedDataset,
    Place,
    TrainLoader,
    aspect_groups,
    seeded,
)
from .user_errors import UserError
from .words import called

logger = logging.getLogger(__name__)

# Marks an image without labels; lists what could not be used in its place: (file name, why) pairs.
MARK = "unlabelled"
TARGETS = ("instances", "sem_seg", "proposals")  # what a mapper makes of labels


def is_unlabelled(x: Any) -> bool:
    """Whether an image's entry in a batch has the mark."""
    return isinstance(x, dict) and MARK in x


def share_of(batch: Any, i: int, parts: int) -> Any:
    """
    The i-th of ``parts`` parts of a batch, with as many images of either kind in each; where a
    loader's last batch does not divide, to within one, and of fewer images than parts some are in
    two. A batch in one part stays as the loader has made it, whatever it is.

    Raises:
        UserError: it is no list.
    """
    if parts == 1:
        return batch
    if not isinstance(batch, (list, tuple)):
        raise UserError(
            f"{called('accumulate')} is {parts}, and the loader's batch is a "
            f"{type(batch).__name__}; it must be a list of images, to be divided."
        )
    kinds = [[x for x in batch if is_unlabelled(x) == which] for which in (False, True)]
    return [x for kind in kinds for x in _part(kind, i, parts)]


def _part(images: List[Any], i: int, parts: int) -> List[Any]:
    start, end = (k * len(images) // parts for k in (i, i + 1))
    return images[start : max(end, start + 1)]  # a step has each micro-batch, in every process


class _Unlabelled(MappedDataset):
    """
    An image that cannot be used is replaced by another at random, which says so. What a file says
    of an image's size is not held against it: no label depends on it.
    """

    def __init__(self, records: Any, mapper: Callable, seed: int, most: int, key: str):
        super().__init__(records, mapper, seed)
        self.most, self.key = most, key

    def __getitem__(self, place: Place) -> Dict[str, Any]:
        position, index = place
        broken: Dict[int, Tuple[str, str]] = {}
        with seeded(self.seed, position):
            while True:
                sample, why = self._try(self.records[index])
                if not why:
                    found = {k: x for k, x in sample.items() if k not in TARGETS}
                    return {**found, MARK: [*broken.values()]}
                broken[index] = self.records[index]["file_name"], why
                self._check(broken, why)
                while index in broken:  # one that was tried here would fail again
                    index = random.randrange(len(self.records))

    def _check(self, broken: Dict[int, Tuple[str, str]], why: str) -> None:
        names = dict(broken.values())
        if len(broken) == len(self.records):
            raise DataError(
                f"None of the images without labels can be used, {len(names)} in all. The last, "
                f"'{[*names][-1]}': {why}"
            )
        if len(names) > self.most:
            raise _too_many(names, why, self.most, self.key)

    def _try(self, record: Dict[str, Any]) -> Tuple[Any, str]:
        """What the mapper makes of it, and why that cannot be used; "" if it can."""
        record = {k: v for k, v in record.items() if k not in ("width", "height")}
        try:
            sample = self.mapper(record)
            if sample is None:
                return None, "the mapper gave nothing for it"
            usable = isinstance(sample, dict) and "image" in sample
            kind = f"a {type(sample).__name__}"
            return sample, "" if usable else f"the mapper gave {kind}, and no dict with 'image'"
        except DataError as error:
            cause = error.__cause__
            why = f"{type(cause).__name__}: {cause}"
            if isinstance(cause, KeyError) and cause.args == ("annotations",):
                why += " (the mapper has to do without them here)"
            return None, why


class JoinedLoader(TrainLoader):
    """
    The batches of a loader, with images of a second one behind those of the iterations that use
    them. For the others none is read, and after the last such iteration the second loader's workers
    end.

    Attributes:
        unlabelled: the second.
        broken: images that could not be used up to now in this process, and why.
    """

    def __init__(
        self,
        labelled: TrainLoader,
        unlabelled: TrainLoader,
        most: int,
        key: str,
        every: int = 1,
        end: float = math.inf,
    ):
        """
        Args:
            labelled: its batches are lists.
            unlabelled: of :func:`unlabelled_loader`.
            most: images to leave out because they cannot be used.
            key: that says how many, for the error.
            every, end: the iterations that use them: those below ``end`` that ``every`` divides.
        """
        super().__init__(
            labelled.dataset, labelled.batches, labelled.images_per_batch, labelled.collate,
            **labelled.kwargs,
        )  # fmt: skip
        self.unlabelled, self.most, self.key = unlabelled, most, key
        self.every, self.end = every, end
        self.broken: Dict[str, str] = {}

    def resume(self, seed: int, images: int, first: Optional[int] = None) -> None:
        super().resume(seed, images, first)
        batches = math.ceil(min(self.first, self.end) / self.every)
        self.unlabelled.resume(_other(seed), batches * self.unlabelled.images_per_batch)

    def __iter__(self) -> Iterator[List[Any]]:
        second: Optional[Iterator[List[Any]]] = None
        for i, labelled in enumerate(super().__iter__(), self.first):
            if i >= self.end:
                second = None
            if i >= self.end or i % self.every:
                yield labelled
                continue
            second = iter(self.unlabelled) if second is None else second
            unlabelled = next(second)
            for x in unlabelled:
                self._leave_out(x[MARK])
            yield [*labelled, *unlabelled]

    def _leave_out(self, broken: Sequence[Any]) -> None:
        for name, why in broken:
            if name in self.broken:
                continue
            self.broken[name] = why
            if len(self.broken) > self.most:
                raise _too_many(self.broken, why, self.most, self.key)
            logger.warning(
                f"Image '{name}' cannot be used and is left out, {len(self.broken)} of at most "
                f"{self.most} ({self.key}): {why}"
            )


def _too_many(broken: Dict[str, str], why: str, most: int, key: str) -> DataError:
    images = "1 image" if len(broken) == 1 else f"{len(broken)} images"
    return DataError(
        f"{images} without labels cannot be used, and {key} is {most}: "
        f"{', '.join(map(repr, broken))}. The last: {why}"
    )


def unlabelled_loader(
    labelled: TrainLoader, records: List[Dict[str, Any]], images: int, most: int, key: str
) -> TrainLoader:
    """
    Args:
        labelled: whose mapper, workers and seed it takes.
        records: with ``file_name``; batches are grouped by aspect ratio if the labelled ones are,
            and all records have ``width`` and ``height``.
        images: a batch, over all processes.
        most, key: see :class:`JoinedLoader`.
    """
    seed = _other(labelled.seed)
    grouped = labelled.batches.groups is not None
    grouped = grouped and all("width" in r and "height" in r for r in records)
    dataset = DatasetFromList(records, copy=False)
    return TrainLoader(
        _Unlabelled(dataset, labelled.dataset.mapper.mapper, seed, most, key),
        GroupedBatches(
            TrainingSampler(len(records), seed=seed),
            images // comm.get_world_size(),
            aspect_groups(records) if grouped else None,
        ),
        images,
        list,
        **labelled.kwargs,
    )


def _other(seed: int) -> int:
    """A seed of its own, so that the two orders and augmentations have nothing in common."""
    return int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])
