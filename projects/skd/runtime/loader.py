"""
A training loader that knows where it is.

Detectron2's loader starts its order of images anew when training resumes, and its augmentation
depends on the number of workers. Here batches are put together from indices, before any image is
read, and what is random about a sample depends on the seed and its place in the order alone. So a
resumed run goes on with the very batches an uninterrupted one would have had, at any number of
workers.
"""

import itertools
import logging
import random
import signal
import weakref
from contextlib import contextmanager
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetFromList
from detectron2.data.build import _train_loader_from_config
from detectron2.data.samplers import RandomSubsetTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from .user_errors import UserError

logger = logging.getLogger(__name__)

# how long a worker outlives a SIGTERM, for the training process to finish its iteration
WORKER_GRACE_SECONDS = 60

Place = Tuple[int, int]  # in the order of all processes, and in the dataset


def seed_everything(*numbers: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, those of GPUs too."""
    torch.manual_seed(_seed_cpu(numbers))


def _seed_cpu(numbers: Sequence[int]) -> int:
    first, second = np.random.SeedSequence(numbers).generate_state(2)
    random.seed(int(first))
    np.random.seed(int(first))
    torch.default_generator.manual_seed(int(second))
    return int(second)


@contextmanager
def seeded(*numbers: int):
    """
    Seed what makes images for a block, and put the random state back after it. GPUs keep theirs:
    it could not be put back cheaply, and torch.manual_seed costs a millisecond before CUDA is used.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_cpu(numbers)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class DataError(UserError):
    """An image or its annotations cannot be read."""


class NamedErrors:
    """A mapper of training or evaluation, whose errors name the image."""

    def __init__(self, mapper: Callable):
        self.mapper = mapper

    def __call__(self, record: Any) -> Any:
        try:
            return self.mapper(record)
        except Exception as error:
            raise DataError(
                f"Image '{record.get('file_name')}' (id {record.get('image_id')!r}) cannot be "
                f"used: {type(error).__name__}: {error}. tools/check_dataset.py lists all that is "
                "wrong with a dataset."
            ) from error


class MappedDataset(Dataset):
    """
    Records through the mapper, with the randomness of their place.

    A record the mapper gives None for is replaced by another at random, as in Detectron2.
    """

    def __init__(self, records, mapper: Callable, seed: int):
        self.records, self.mapper, self.seed = records, NamedErrors(mapper), seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: Place) -> Any:
        position, index = place
        with seeded(self.seed, position):
            for attempt in itertools.count(1):
                sample = self.mapper(self.records[index])
                if sample is not None:
                    return sample
                if attempt % 3 == 0:
                    logger.warning(f"The mapper gave nothing for {attempt} images in a row.")
                index = random.randrange(len(self.records))


class GroupedBatches(Sampler):
    """
    Batches of places; with groups, each from images of one group only (as wide as high or more,
    and higher), like Detectron2's ``AspectRatioGroupedDataset``.
    """

    def __init__(self, sampler: Sampler, batch_size: int, groups: Optional[Sequence[int]]):
        self.sampler, self.batch_size, self.groups = sampler, batch_size, groups
        self.skip = 0  # batches

    def __iter__(self) -> Iterator[List[Place]]:
        return itertools.islice(self._all(), self.skip, None)

    def _all(self) -> Iterator[List[Place]]:
        rank, world = comm.get_rank(), comm.get_world_size()
        waiting: List[List[Place]] = [[], []]
        for i, index in enumerate(self.sampler):
            group = waiting[self.groups[index] if self.groups is not None else 0]
            group.append((i * world + rank, index))
            if len(group) == self.batch_size:
                yield group[:]
                del group[:]


class TrainLoader:
    """
    Endless batches. Iterating starts where :meth:`resume` says, or at the beginning.

    Attributes:
        seed: of the order and of what is random about each sample.
        images_per_batch: over all processes.
        first: the iteration that the first batch is for.
    """

    first = 0

    def __init__(
        self,
        dataset: MappedDataset,
        batches: GroupedBatches,
        images: int,
        collate: Callable[[List[Any]], Any],
        **kwargs: Any,
    ):
        self.dataset, self.batches, self.images_per_batch = dataset, batches, images
        self.collate, self.kwargs = collate, kwargs

    @property
    def seed(self) -> int:
        return self.dataset.seed

    def resume(self, seed: int, images: int, first: Optional[int] = None) -> None:
        """
        Go on in the order of another run.

        Args:
            seed: that run's.
            images: how many of them all processes have had.
            first: see the class; by default as if all batches had had the present size.
        """
        self.first = images // self.images_per_batch if first is None else first
        self.dataset.seed = seed
        _seed_sampler(self.batches.sampler, seed)
        self.batches.skip = images // self.images_per_batch

    def __iter__(self) -> Iterator[Any]:
        """
        Workers make images, as in Detectron2 where it groups them, and batches are put together
        here: no more of them wait in memory than there.
        """
        generator = torch.Generator()  # or the loader draws from the global one
        generator.manual_seed(self.seed)
        images = iter(
            DataLoader(
                self.dataset, batch_size=None, sampler=_Places(self.batches), generator=generator,
                collate_fn=_as_they_are, **self.kwargs,
            )  # fmt: skip
        )
        _end_workers_at_exit(images)
        return self._gather(images)

    def _gather(self, images: Iterator[Any]) -> Iterator[Any]:
        while True:
            batch = list(itertools.islice(images, self.batches.batch_size))
            if len(batch) < self.batches.batch_size:
                return
            yield self.collate(batch)


class _Places(Sampler):
    """The places of the batches, one after the other."""

    def __init__(self, batches: GroupedBatches):
        self.batches = batches

    def __iter__(self) -> Iterator[Place]:
        return itertools.chain.from_iterable(self.batches)


def _end_workers_at_exit(batches: Any) -> None:
    """
    Let a process end its workers before it exits, by telling them. It would send them SIGTERM,
    which they outlive for a while (see ``_init_worker``), and wait for them.
    """
    if hasattr(batches, "_shutdown_workers"):
        # with a priority, because processes are ended before what has none
        Finalize(batches, _end_workers, args=(weakref.ref(batches),), exitpriority=10)


def _end_workers(batches: weakref.ref) -> None:
    if batches() is not None:
        batches()._shutdown_workers()


def _from_config(cfg: CfgNode, *args, seed: Optional[int] = None, **kwargs):
    settings = _train_loader_from_config(cfg, *args, **kwargs)
    return {**settings, "seed": cfg.SEED if seed is None and cfg.SEED >= 0 else seed}


@configurable(from_config=_from_config)
def build_train_loader(
    dataset,
    *,
    mapper: Callable,
    sampler: Optional[Sampler] = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Optional[Callable] = None,
    seed: Optional[int] = None,
    **kwargs,
):
    """
    Build a loader as ``build_detection_train_loader`` does, from the same arguments or a config.

    Args:
        dataset: list of records, or a map-style dataset of them. (An iterable one has no order
            to go on in; use Detectron2's loader for it.)
        mapper, sampler, total_batch_size, aspect_ratio_grouping, num_workers, collate_fn, kwargs:
            as there.
        seed: of the order, the augmentation and ``RandomSubsetTrainingSampler``'s subset, in place
            of the sampler's own; None for one that all processes draw.

    Returns:
        A :class:`TrainLoader`.

    Raises:
        ValueError: an iterable dataset, or a batch that the processes cannot share equally.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError("An iterable dataset has no places: use build_detection_train_loader.")
    world = comm.get_world_size()
    if total_batch_size < 1 or total_batch_size % world:
        raise ValueError(
            f"total_batch_size is {total_batch_size}; it must be a multiple of the number of "
            f"processes, {world}."
        )
    seed = comm.shared_random_seed() if seed is None else seed
    groups = aspect_groups(dataset) if aspect_ratio_grouping else None
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if sampler is None:
        sampler = TrainingSampler(len(dataset))
    _seed_sampler(sampler, seed)
    kwargs["worker_init_fn"] = partial(_init_worker, kwargs.get("worker_init_fn"))
    share = total_batch_size // world
    if num_workers and not aspect_ratio_grouping:
        # Detectron2's workers then make whole batches: as many images ahead, or steps would wait
        kwargs["prefetch_factor"] = share * (kwargs.get("prefetch_factor") or 2)
    return TrainLoader(
        MappedDataset(dataset, mapper, seed),
        GroupedBatches(sampler, share, groups),
        total_batch_size,
        collate_fn or _as_they_are,
        num_workers=num_workers,
        **kwargs,
    )


def aspect_groups(dataset) -> Optional[List[int]]:
    """A group for each record: 0 if it is wider than high, else 1. None if sizes are unknown."""
    try:
        return [0 if record["width"] > record["height"] else 1 for record in dataset]
    except KeyError:  # Detectron2's mapper finds the size when it reads the image
        logger.warning(
            "Some records have no width and height: batches are not grouped by aspect ratio, so "
            "more of each image's canvas may be padding."
        )
        return None


def _seed_sampler(sampler: Sampler, seed: int) -> None:
    """The loader's seed rules the order, and which images a random subset has."""
    if hasattr(sampler, "_seed"):
        sampler._seed = seed
    if isinstance(sampler, RandomSubsetTrainingSampler):
        again = RandomSubsetTrainingSampler(sampler._size, 1.0, seed_shuffle=seed, seed_subset=seed)
        sampler._seed_subset = seed
        sampler._indexes_subset = again._indexes_subset[: sampler._size_subset]


def _init_worker(then: Optional[Callable], worker: int) -> None:
    """
    A scheduler's signal reaches the whole process group. The training process acts on it, and
    needs its workers to the end of the iteration; torch would end them, and that would be an error
    in the training process. One that is not wanted any more ends by itself, at the latest after a
    minute.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_GRACE_SECONDS))
    if then is not None:
        then(worker)


def _as_they_are(x: Any) -> Any:
    return x
