"""`python -m llamaherd_ui`: the ui alone, against a running nats-server."""

import os
import sys
from collections.abc import Sequence

from llamaherd_shared.service import Service, load_or_exit, run_service
from llamaherd_shared.settings import load_settings, service_arguments
from llamaherd_ui.settings import UiSettings


def main(argv: Sequence[str] | None = None) -> int:
    config = service_arguments(
        sys.argv[1:] if argv is None else argv, "ui", "The herd for browsers: REST, live stream and web app."
    )
    common, settings = load_or_exit(lambda: load_settings(UiSettings, "ui", config=config, environ=os.environ), "ui")

    async def run(service: Service) -> None:
        # Litestar takes a quarter of a second to import: not before the settings are known to be good.
        from llamaherd_ui.app import run

        await run(service, settings)

    return run_service("ui", run, common)


if __name__ == "__main__":
    sys.exit(main())
