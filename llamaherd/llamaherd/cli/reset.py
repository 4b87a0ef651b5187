"""`llamaherd reset`."""

from llamaherd.cli.options import Json, Node, Url, open_client
from llamaherd.console import Screen, print_json
from llamaherd.failures import OK
from llamaherd.words import describe_reset


def reset(model: str, /, *, node: Node = None, url: Url = None, json: Json = False) -> int:
    """Forget the crashes of a model that was given up, and start it again.

    For when you have mended what made it crash. One that waits to be started again is started at once; one that nobody
    wants any more is stopped. Any other goes on as it is.
    """
    with open_client(url) as client:
        done = client.reset(model, node=node)
    if json:
        print_json(done)
    else:
        Screen().say(describe_reset(done))
    return OK
