"""`llamaherd models` and `llamaherd ps`."""

import time
from typing import Annotated

from cyclopts import Parameter

from llamaherd.cli.options import Json, Url, open_client, recorded_herd
from llamaherd.console import Screen, print_json, print_raw_json
from llamaherd.failures import OK
from llamaherd.words import instances_table, models_table

Quiet = Annotated[bool, Parameter(alias="-q", negative="", help="Print names only.")]


def models(*, url: Url = None, json: Json = False, quiet: Quiet = False) -> int:
    """List the models in the models folder. A new .gguf file put there is found by itself."""
    with open_client(url) as client:
        if json:
            print_raw_json(client.get("/models"))
            return OK
        found = client.models()
    screen = Screen()
    if quiet:
        for model in found:
            screen.say(model.model)
    elif found:
        screen.show(models_table(found, with_node=len({model.node for model in found}) > 1))
    else:
        herd = recorded_herd() if url is None else None
        folder = herd.models_dir if herd else "the models folder"
        screen.say(f"No models yet: put a .gguf file into {folder}.")
    return OK


def ps(*, url: Url = None, json: Json = False, quiet: Quiet = False) -> int:
    """List the llama-servers that run, load, or wait to be started again."""
    with open_client(url) as client:
        found = [model for model in client.models() if model.rows]
    screen = Screen()
    if json:
        print_json(found)
    elif quiet:
        for model in found:
            screen.say(model.model)
    elif found:
        with_node = len({model.node for model in found}) > 1
        screen.show(instances_table(found, now_ns=time.time_ns(), with_node=with_node))
    else:
        screen.say("Nothing is loaded. Load a model with: llamaherd load MODEL")
    return OK
