"""`llamaherd down`."""

import contextlib
import time
from typing import Annotated, Final

import psutil
from cyclopts import Parameter

from llamaherd.cli.options import DataDir, data_dir_of
from llamaherd.console import Screen
from llamaherd.failures import FAILED, NOT_FOUND, OK
from llamaherd.launcher.process import find_instances, sweep
from llamaherd.launcher.store import find_process, forget_herd, read_herd

TIMEOUT_S: Final = 60.0


def down(
    *,
    data_dir: DataDir = None,
    timeout: Annotated[float, Parameter(help="Seconds to wait before what still runs is killed.")] = TIMEOUT_S,
) -> int:
    """Stop the herd that runs on this machine, and wait until nothing of it is left.

    Answers in flight get ten seconds. Nothing that is stored is lost.
    """
    screen, folder = Screen(), data_dir_of(data_dir)
    herd = read_herd(folder)
    launcher = find_process(herd.launcher) if herd else None
    children = [found for one in (herd.processes if herd else ()) if (found := find_process(one)) is not None]
    children += find_instances(folder)
    if launcher is None and not children:
        screen.fail(f"no herd runs on the data folder {folder}; if yours has another one, name it with --data-dir")
        return NOT_FOUND
    with screen.bar("stopping the herd") as bar:
        if launcher is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                launcher.terminate()
            deadline = time.monotonic() + timeout
            while launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                bar.update(None)
                time.sleep(0.05)
        left = [process for process in (launcher, *children) if process is not None and process.is_running()]
        if left:
            sweep(left, patience_s=8)
    forget_herd(folder)
    if any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left):
        screen.fail("some processes could not be ended: " + ", ".join(str(process.pid) for process in left))
        return FAILED
    screen.say("the herd is stopped")
    return OK
