"""Asks the kernel to run this thread as soon as it is woken, whatever computes on its processor (docs/adr/0023)."""

import ctypes
import platform
import sys
from typing import Final

SLICE_NS: Final = 500_000
"""Nanoseconds that the gateway may run before others do. Others may for some milliseconds, and only whoever has a
shorter slice is run before theirs ends. A turn of the gateway's loop takes a tenth of a millisecond."""

_NUMBERS: Final = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}
"""`sched_setattr` and `sched_getattr` by machine: system calls that C libraries have functions for since glibc 2.41."""
_SET, _GET = _NUMBERS.get(platform.machine(), (0, 0))
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" and sys.maxsize > 2**32 and _SET else None
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


def ask_for_slice() -> bool:
    """Take a slice of `SLICE_NS` for the calling thread; what else is set, its nice value too, stays.

    `False`: the kernel has none to give (before Linux 6.12), or somebody has given this thread another policy.
    """
    attributes = _read(0)
    if _LIBC is None or attributes is None or attributes.policy not in _ORDINARY:
        return False
    attributes.runtime = SLICE_NS
    _LIBC.syscall(_SET, 0, ctypes.byref(attributes), 0)
    return slice_of(0) == SLICE_NS


def slice_of(thread: int) -> int:
    """Nanoseconds; 0 where the kernel has no slices of threads' own. `thread`: its id, 0 for the calling one."""
    attributes = _read(thread)
    return attributes.runtime if attributes is not None else 0


def _read(thread: int) -> _Attributes | None:
    if _LIBC is None:
        return None
    attributes = _Attributes()
    failed = _LIBC.syscall(_GET, thread, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    return None if failed else attributes
