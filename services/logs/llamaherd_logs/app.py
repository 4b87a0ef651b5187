"""Puts the service together: the stream into the projection, queries out of it."""

import asyncio
from functools import partial
from typing import Final

from llamaherd_logs import store
from llamaherd_logs.handlers import Handlers
from llamaherd_logs.settings import LogsSettings
from llamaherd_shared.commands import LineQuery
from llamaherd_shared.events.line import decode_lines
from llamaherd_shared.projection import Follower, Source
from llamaherd_shared.service import Service
from llamaherd_shared.streams import LOGS

_DAY_S: Final = 86_400


async def run(service: Service, settings: LogsSettings) -> None:
    """Keep lines and answer until the service is asked to stop."""
    retention = store.Retention(keep_s=settings.keep_days * _DAY_S, max_bytes=settings.max_bytes)
    projection = service.projection(store.SCHEMA, store.VERSION)
    source = Source(stream=LOGS, decode=decode_lines, project=lambda db, packs: store.record(db, retention, packs))
    follower = Follower(service.bus, projection, source, trouble=partial(service.trouble, about="projection"))
    served = await service.bus.serve(
        service.bus.subjects.command("logs", "query"), LineQuery, Handlers(projection).query
    )
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(follower.run()), group.create_task(_say_ready(service, follower))]
            await service.stopping.wait()
            for task in running:
                task.cancel()
    finally:
        await served.drain()
        projection.close()


async def _say_ready(service: Service, follower: Follower) -> None:
    await follower.caught_up.wait()
    service.ready()
