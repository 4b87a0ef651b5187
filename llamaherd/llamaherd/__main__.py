"""The command line: names, help and exit codes. What a command does is imported only when it is called."""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from cyclopts import App, CycloptsError, Group, Parameter

from llamaherd import __version__
from llamaherd.failures import INTERRUPTED, OK, USAGE, exit_code_of
from llamaherd_shared.errors import HerdError

PROLOGUE: Final = """\
A herd of llama.cpp servers behind one gateway.

New here? `llamaherd up --demo` serves a small model; then `llamaherd run cria "Who are you?"`.
"""
EPILOGUE: Final = (
    "Every command explains itself with --help. With --json, commands that show something print JSON; what streams is "
    "one object a line. Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 nobody answers, 130 interrupted."
)


def make_app() -> App:
    """The tree of commands; none of their modules is imported yet."""
    app = App(
        name="llamaherd",
        help=PROLOGUE,
        help_epilogue=EPILOGUE,
        version=f"llamaherd {__version__}",
        help_format="plaintext",  # markdown costs 90 ms of imports
        default_parameter=Parameter(show_default=False),  # the help texts tell defaults in words
    )
    groups = {name: Group(name, sort_key=place) for place, name in enumerate(COMMANDS)}
    for name, commands in COMMANDS.items():
        for command, (target, help_text) in commands.items():
            app.command(f"llamaherd.cli.{target}", name=command, help=help_text, group=groups[name])
    key = App(name="key", help="Make, list and revoke API keys of the gateway.", group=groups["Access"])
    for name, (target, help_text) in KEY_COMMANDS.items():
        key.command(f"llamaherd.cli.key:{target}", name=name, help=help_text)
    app.command(key)
    last = groups[next(reversed(COMMANDS))]
    for flag in ("--help", "--version"):
        app[flag].group = last
    install = App(name="install", help="Install llama-server (built from source, about five minutes).", group=last)
    install.command(
        "llamaherd.cli.install:llama_server",
        name="llama-server",
        help="Build llama-server and keep it in your cache folder, where `up` finds it.",
    )
    app.command(install)
    return app


COMMANDS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "The herd": {
        "up": ("up:up", "Start a herd on this machine and keep it running until Ctrl-C."),
        "down": ("down:down", "Stop the herd that runs on this machine."),
        "status": ("status:status", "Show the services and whether they are ready."),
        "nodes": ("nodes:nodes", "List the hosts and what is loaded on each."),
        "drain": ("nodes:drain", "Take a host out of service for maintenance."),
        "resume": ("nodes:resume", "End a host's maintenance."),
        "reload": ("reload:reload", "Read llamaherd.yaml again and tell what starts again."),
        "doctor": ("doctor:doctor", "Check this machine and say how to mend what is missing."),
    },
    "Models": {
        "models": ("models:models", "List the models in the models folder."),
        "ps": ("models:ps", "List the llama-servers that run."),
        "pull": ("pull:pull", "Get a model from Hugging Face."),
        "load": ("load:load", "Load a model and wait until it is ready."),
        "unload": ("load:unload", "Unload a model and free its memory."),
        "reset": ("reset:reset", "Forget a model's crashes and start it again."),
        "run": ("run:run", "Chat with a model in the terminal."),
        "parameters": ("parameters:parameters", "Show what llama-server can be told."),
    },
    "What happens": {
        "logs": ("logs:logs", "Show log lines of every service and llama-server."),
        "events": ("events:events", "Show the facts of the herd, in order."),
    },
    "Access": {},
    "Set-up": {
        "version": ("version:version", "Show the versions of the parts."),
    },
}
"""By group: name, where it is (`module:function` in `llamaherd.cli`) and its line in the overview."""

KEY_COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "create": ("create", "Make an API key and print it, once."),
    "list": ("list_keys", "List the API keys and what they have used."),
    "revoke": ("revoke", "Revoke an API key, at once and for good."),
}
"""Those of `llamaherd key`: name, function in `llamaherd.cli.key`, line in the overview."""


def run(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code. Every expected failure is one sentence on stderr."""
    try:
        code = make_app()(argv, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        return USAGE  # cyclopts has told what is wrong
    except HerdError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our pipe (`| head`) has enough. Nothing more can be flushed at exit either.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code if isinstance(code, int) else OK


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
