"""Detectron2's launcher, or torchrun's processes."""

import argparse
import os
import signal
import sys
import threading
import uuid
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing import active_children
from typing import Any, Callable, Iterator, List

import torch
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed as dist
from torch import multiprocessing
from torch.distributed.rendezvous import rendezvous

from ..runtime.preemption import EXIT_REQUEUE, signals_to_take
from ..runtime.record import LAUNCH_VARIABLE
from ..runtime.user_errors import EXIT_USER_ERROR, UserError


class LaunchError(UserError, ValueError):
    """Flags that contradict how the processes were started."""


def under_torchrun() -> bool:
    """Whether this process was started by torchrun (or by anything that sets its variables)."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= set(os.environ)


def _launch_here(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    several = args.num_gpus * args.num_machines > 1
    received: List[int] = []
    with _passing_on(received) if several else nullcontext():
        try:
            return detectron2_launch(
                partial(_in_child, main) if several else main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        except multiprocessing.ProcessExitedException as error:
            if error.exit_code in (EXIT_REQUEUE, EXIT_USER_ERROR):  # it has said why
                sys.exit(error.exit_code)
            if received:  # before there was anything to save, or for the second time
                sys.exit(128 + received[0])
            rank = args.machine_rank * args.num_gpus + error.error_index
            raise RuntimeError(
                f"Rank {rank} of {args.num_gpus * args.num_machines} died "
                f"({error.signal_name or f'exit code {error.exit_code}'}), and the other processes "
                "of this machine were stopped. The last checkpoint is complete: continue with "
                "--resume."
            ) from error


def _in_child(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    # Until PreemptionHook takes it, Ctrl-C ends the process by the signal: of Python's
    # KeyboardInterrupt torch's launcher makes an exit code of 0.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return main(args)


@contextmanager
def _passing_on(received: List[int]) -> Iterator[None]:
    """
    The children stop in good order themselves (see :class:`PreemptionHook`), or at once before
    they train; this process waits for them. Without any yet it ends at once.
    """

    def pass_on(number: int, frame: Any) -> None:
        received.append(number)
        children = active_children()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child.pid, number)
        if not children:
            sys.exit(128 + number)

    here = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, pass_on) for s in signals_to_take()} if here else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _launch_id(store: dist.Store) -> str:
    """Set by the first process of the first start; torchrun's store keeps it through restarts."""
    while isinstance(store, dist.PrefixStore):  # the prefixes are of this start
        store = store.underlying_store
    return store.compare_set("skd_launch", "", uuid.uuid4().hex).decode()


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """
    Run ``main(args)`` in every process: in those torchrun has started, else in as many as
    ``--num-gpus`` and ``--num-machines`` say.

    After an elastic restart :class:`RunFolder` goes on from the checkpoint that this launch has
    written, if it has.

    Raises:
        ValueError: both torchrun and ``--num-gpus`` or ``--num-machines``.
    """
    if not under_torchrun():
        return _launch_here(main, args)
    if args.num_gpus > 1 or args.num_machines > 1:
        raise LaunchError(
            "torchrun starts the processes itself: leave out --num-gpus and --num-machines, and "
            "give torchrun --nproc-per-node and --nnodes."
        )
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # torchrun's store outlives a restart: addresses of the processes before must not be found there
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    store, rank, size = next(rendezvous("env://"))
    launch_id = _launch_id(store)
    store = dist.PrefixStore(f"skd_restart_{restarts}", store)
    dist.init_process_group(
        "nccl" if gpu else "gloo", store=store, rank=rank, world_size=size, timeout=DEFAULT_TIMEOUT
    )
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
    os.environ[LAUNCH_VARIABLE] = launch_id
    try:
        result = main(args)
    finally:
        del os.environ[LAUNCH_VARIABLE]
    # not after an error: it waits for the other processes, which wait for this one
    dist.destroy_process_group()
    return result
