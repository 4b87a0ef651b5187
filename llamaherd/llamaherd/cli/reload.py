"""`llamaherd reload`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from llamaherd.cli.options import Json, Url, open_client
from llamaherd.console import Screen, print_json
from llamaherd.failures import OK, Misused
from llamaherd.words import describe_reload

DryRun = Annotated[bool, Parameter(negative="", help="Only tell what would happen.")]
Instead = Annotated[
    Path | None, Parameter(name="--file", help="Tell what would happen if this were the file. Changes nothing.")
]


def reload(*, dry_run: DryRun = False, file: Instead = None, url: Url = None, json: Json = False) -> int:
    """Read llamaherd.yaml again and tell which llama-servers start again, and why.

    Not needed: the services follow the file by themselves, within a second. What is said about models and aliases
    counts at once; only what would be started otherwise is drained and started again. A file with a mistake changes
    nothing.
    """
    text = _read(file) if file is not None else None
    dry_run = dry_run or file is not None
    with open_client(url) as client:
        reloaded = client.reload(dry_run=dry_run, text=text)
    if json:
        print_json(reloaded)
        return OK
    screen = Screen()
    for line in describe_reload(reloaded, dry_run=dry_run):
        screen.say(line)
    return OK


def _read(file: Path) -> str:
    try:
        return file.expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Misused(f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is not text'}") from error
