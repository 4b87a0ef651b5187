"""`python -m llamaherd_gateway`"""

import os
import sys

from llamaherd_gateway.app import serve
from llamaherd_gateway.settings import GatewaySettings
from llamaherd_shared.configuration import Configuration
from llamaherd_shared.service import load_or_exit, run_service
from llamaherd_shared.settings import load_models, load_settings, service_arguments


def main() -> int:
    config = service_arguments(sys.argv[1:], "gateway", "The data plane: one HTTP API in front of many llama-servers.")
    common, settings = load_or_exit(
        lambda: load_settings(GatewaySettings, "gateway", config=config, environ=os.environ), "gateway"
    )
    models = load_or_exit(lambda: load_models(config=config, environ=os.environ), "gateway")
    configuration = Configuration("gateway", GatewaySettings, settings, config=config, environ=os.environ)
    return run_service("gateway", lambda service: serve(service, settings, models, configuration), common)


if __name__ == "__main__":
    sys.exit(main())
