"""`python -m llamaherd_supervisor`: reads the settings, runs the supervisor, maps its end to an exit code."""

import os
import sys

from llamaherd_shared.configuration import Configuration
from llamaherd_shared.service import Service, load_or_exit, run_service
from llamaherd_shared.settings import load_models, load_settings, service_arguments
from llamaherd_supervisor import app
from llamaherd_supervisor.settings import SupervisorSettings


def main() -> int:
    config = service_arguments(sys.argv[1:], "supervisor", "Starts, watches and stops llama-servers on this host.")
    common, settings = load_or_exit(
        lambda: load_settings(SupervisorSettings, "supervisor", config=config, environ=os.environ), "supervisor"
    )
    models = load_or_exit(lambda: load_models(config=config, environ=os.environ), "supervisor")
    environment = dict(os.environ)
    configuration = Configuration("supervisor", SupervisorSettings, settings, config=config, environ=environment)

    async def supervise(service: Service) -> None:
        await app.run(service, settings, models, configuration, environment)

    return run_service("supervisor", supervise, common)


if __name__ == "__main__":
    sys.exit(main())
