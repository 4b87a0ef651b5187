"""`python -m llamaherd_logs`: the logs service."""

import os
import sys
from functools import partial

from llamaherd_logs.app import run
from llamaherd_logs.settings import LogsSettings
from llamaherd_shared.service import load_or_exit, run_service
from llamaherd_shared.settings import load_settings, service_arguments


def main() -> int:
    config = service_arguments(sys.argv[1:], "logs", "Keeps every log line of the herd and finds it again.")
    load = partial(load_settings, LogsSettings, "logs", config=config, environ=os.environ)
    common, settings = load_or_exit(load, "logs")
    return run_service("logs", partial(run, settings=settings), common)


if __name__ == "__main__":
    raise SystemExit(main())
