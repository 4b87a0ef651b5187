"""`llamaherd status`."""

import time

from llamaherd.cli.options import Json, Url, open_client, recorded_herd
from llamaherd.console import Screen, print_raw_json
from llamaherd.failures import FAILED, OK
from llamaherd.words import addresses_table, describe_troubles, services_table


def status(*, url: Url = None, json: Json = False) -> int:
    """Show the services and whether they are ready, and what is wrong with models. Exit code 1 when a service is not.

    What is wrong with a service stands in the last column; `llamaherd logs --source SERVICE` tells more.
    """
    with open_client(url) as client:
        fleet = client.fleet()
        if json:
            print_raw_json(client.get("/fleet"))
        else:
            screen = Screen()
            screen.show(services_table(fleet.services, now_ns=time.time_ns()))
            loaded = sum(model.state == "ready" for model in fleet.models)
            screen.say(f"{loaded} of {len(fleet.models)} models loaded")
            for trouble in describe_troubles(fleet.models, with_node=len({model.node for model in fleet.models}) > 1):
                screen.say(trouble, style="red")
            herd = recorded_herd() if url is None else None
            if herd is not None and herd.ui_url == client.url:
                rows = [("OpenAI base URL", f"{herd.gateway_url}/v1"), ("Web UI", herd.ui_url), ("NATS", herd.nats_url)]
                screen.show(addresses_table(rows))
    return OK if fleet.services and all(service.ready for service in fleet.services) else FAILED
