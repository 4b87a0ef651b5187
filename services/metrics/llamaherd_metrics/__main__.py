"""`python -m llamaherd_metrics`: the metrics service; with `--once`, one scrape of this host as JSON."""

import os
import sys
import time
from functools import partial

import msgspec

from llamaherd_metrics.app import run
from llamaherd_metrics.host import read_host
from llamaherd_metrics.nvml import Gpus
from llamaherd_metrics.sample import Readings, shape_samples
from llamaherd_metrics.settings import MetricsSettings
from llamaherd_shared.service import load_or_exit, run_service
from llamaherd_shared.settings import CommonSettings, load_settings, service_arguments

DESCRIPTION = """Measures this host, its GPUs and the herd's processes once a second, and keeps the history.
With --once: prints one scrape of the host and its GPUs as JSON and ends; needs no nats-server."""
SETTLE_S = 0.5
"""Between the two readings a rate needs."""


def main() -> int:
    once = "--once" in sys.argv
    config = service_arguments([word for word in sys.argv[1:] if word != "--once"], "metrics", DESCRIPTION)
    load = partial(load_settings, MetricsSettings, "metrics", config=config, environ=os.environ)
    common, settings = load_or_exit(load, "metrics")
    if once:
        return print_once(common)
    return run_service("metrics", partial(run, settings=settings), common)


def print_once(common: CommonSettings) -> int:
    """One scrape on standard output; what troubles the GPUs on standard error."""
    gpus = Gpus(lambda sentence: print(sentence, file=sys.stderr) if sentence else None)
    where = next(path for path in (common.data_dir, *common.data_dir.absolute().parents) if path.exists())
    previous = Readings(host=read_host(where))
    time.sleep(SETTLE_S)
    current = Readings(host=read_host(where))
    samples = list(shape_samples(common.node, previous, current, gpus.read(), at_ns=time.time_ns()))
    gpus.close()
    print(msgspec.json.format(msgspec.json.encode(samples), indent=2).decode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
