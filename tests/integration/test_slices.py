"""The gateway's slice of the processor, as the kernel tells it."""

import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from harness.gateway import GatewayProcess
from harness.nats import NatsServer
from llamaherd_gateway.slices import SLICE_NS, ask_for_slice, slice_of

HAS_SLICES = platform.system() == "Linux" and tuple(map(int, platform.release().split(".")[:2])) >= (6, 12)
T = TypeVar("T")


def in_thread(ask: Callable[[], T]) -> T:
    """What it returns in a thread of its own: what is set there ends with it."""
    answers: list[T] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    thread.join()
    return answers[0]


def test_a_slice_is_had_where_the_kernel_has_them_and_nothing_else_changes() -> None:
    def ask() -> tuple[bool, int, int]:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7)
        granted = ask_for_slice()
        return granted, slice_of(0), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = slice_of(0)

    assert in_thread(ask) == ((True, SLICE_NS, 7) if HAS_SLICES else (False, before, 7))
    assert slice_of(0) == before


def test_a_thread_that_was_given_another_policy_keeps_it() -> None:
    def ask() -> tuple[bool, int]:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return ask_for_slice(), os.sched_getscheduler(0)

    assert in_thread(ask) == (False, os.SCHED_IDLE)


def test_what_is_no_thread_has_no_slice() -> None:
    assert slice_of(-1) == 0


def test_the_gateway_takes_its_slice(nats_server: NatsServer, tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path, nats_server.url).start()
    try:
        assert gateway.process is not None
        assert (slice_of(gateway.process.pid) == SLICE_NS) == HAS_SLICES
    finally:
        gateway.stop()
