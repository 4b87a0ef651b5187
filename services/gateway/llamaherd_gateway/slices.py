"""Asks the kernel to run this thread as soon as it is woken, whatever computes on its processor (docs/adr/0023)."""

import ctypes
import platform
import sys
from typing import Any, Final

SLICE_NS: Final = 500_000
"""Nanoseconds that the gateway may run before others do. Others may for some milliseconds, and only whoever has a
shorter slice is run before theirs ends. A turn of the gateway's loop takes a tenth of a millisecond."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_NUMBERS: Final = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}
"""`sched_setattr` and `sched_getattr` by machine: system calls that C libraries have functions for since glibc 2.41."""
_SIXTY_FOUR_BITS: Final = sys.maxsize > 2**32
_ORDINARY: Final = (0, 3)
"""Policies that share the processor: SCHED_OTHER, SCHED_BATCH."""


class _Attributes(ctypes.Structure):
    """`struct sched_attr` in its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def ask_for_slice(slice_ns: int = SLICE_NS) -> bool:
    """Take a slice of this length for the calling thread; what else is set, its nice value too, stays.

    `False`: the kernel has none to give (before Linux 6.12), or somebody has given this thread another policy.
    """
    calls = _calls()
    if calls is None:
        return False
    attributes = _read(*calls, 0)
    if attributes is None or attributes.policy not in _ORDINARY:
        return False
    attributes.runtime = slice_ns
    calls[0].syscall(calls[1], 0, ctypes.byref(attributes), 0)
    return slice_of(0) == slice_ns


def slice_of(thread: int) -> int:
    """Nanoseconds; 0 where the kernel has no slices of threads' own. `thread`: its id, 0 for the calling one."""
    calls = _calls()
    attributes = _read(*calls, thread) if calls is not None else None
    return attributes.runtime if attributes is not None else 0


def _calls() -> tuple[Any, int, int] | None:
    numbers = _NUMBERS.get(platform.machine())
    return (_LIBC, *numbers) if _LIBC is not None and numbers is not None and _SIXTY_FOUR_BITS else None


def _read(libc: Any, _: int, number: int, thread: int) -> _Attributes | None:
    attributes = _Attributes()
    failed = libc.syscall(number, thread, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    return None if failed else attributes
