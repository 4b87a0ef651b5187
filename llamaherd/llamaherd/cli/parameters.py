"""`llamaherd parameters`."""

from typing import Annotated

from cyclopts import Parameter

from llamaherd.cli.options import Json, Url, open_client
from llamaherd.console import Screen, print_json
from llamaherd.failures import OK
from llamaherd.words import parameters_table

Search = Annotated[str | None, Parameter(alias="-s", help="Words that all occur in what is told of a parameter.")]
Node = Annotated[str | None, Parameter(help="The host whose llama-server is asked. Default: the first there is.")]


def parameters(
    category: str | None = None,
    /,
    *,
    search: Search = None,
    node: Node = None,
    url: Url = None,
    json: Json = False,
) -> int:
    """Show what llama-server can be told, as its own help tells: all of it, or one CATEGORY.

    Under NAME stands what sets a parameter in `models` of llamaherd.yaml (docs/models.md). What has no name goes into
    `args` of a model as it is; what is the supervisor's is refused there.
    """
    with open_client(url) as client:
        told = client.parameters(category=category, search=search, node=node)
    screen = Screen()
    if json:
        print_json(told)
    elif not told.categories:
        screen.say(f"No parameter of {told.llama_server} has all of these words: {search}")
    else:
        screen.show(parameters_table(told.categories))
    return OK
