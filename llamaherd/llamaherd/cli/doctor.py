"""`llamaherd doctor`."""

import os

from llamaherd.cli.options import DataDir, Json, data_dir_of
from llamaherd.console import Screen, print_json
from llamaherd.failures import FAILED, OK
from llamaherd.launcher.doctor import examine
from llamaherd.words import checks_table


def doctor(*, data_dir: DataDir = None, json: Json = False) -> int:
    """Check this machine and say how to mend what is missing. Exit code 1 when `up` would not work."""
    checks = examine(data_dir_of(data_dir), os.environ)
    if json:
        for check in checks:
            print_json(check)
    else:
        screen = Screen()
        screen.show(checks_table(checks))
        bad = sum(not check.ok for check in checks)
        screen.say("everything is in order" if not bad else f"{bad} of {len(checks)} checks failed")
    return OK if all(check.ok for check in checks) else FAILED
