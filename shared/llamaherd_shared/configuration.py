"""llamaherd.yaml as a running service follows it: read again when it has changed, kept as it was while it is wrong."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from llamaherd_shared.model_spec import Models
from llamaherd_shared.service import Service
from llamaherd_shared.settings import SettingsError, load_models, load_settings

S = TypeVar("S", bound=msgspec.Struct)

FOLLOW_S: Final = 0.5
"""Between two looks at the file. A change counts at the second look that sees it: it is written to its end by then."""


class Configuration(Generic[S]):
    """What one service reads of the file. The kernel is not asked to watch it: on network mounts it would not."""

    def __init__(
        self, service: str, type_: type[S], current: S, *, config: Path | None, environ: Mapping[str, str]
    ) -> None:
        """`current`: the service's settings as it was started with them."""
        self._service, self._type, self._current = service, type_, current
        self.config, self._environ = config, environ
        self._seen = _look(config)

    def read(self) -> tuple[S, Models]:
        """The service's settings and what is said about models, as the file says now. Raises `SettingsError`."""
        _, settings = load_settings(self._type, self._service, config=self.config, environ=self._environ)
        return settings, load_models(config=self.config, environ=self._environ)

    def read_models(self, text: str) -> Models:
        """What would be said about models if the file said this. Raises `SettingsError`."""
        return load_models(config=self.config or Path("llamaherd.yaml"), environ=self._environ, text=text)

    def needing_restart(self, settings: S, *, but: frozenset[str] = frozenset()) -> list[str]:
        """Settings that differ from those the service runs with, and count at its next start only."""
        return [
            f"{self._service}.{name}"
            for name in self._type.__struct_fields__
            if name not in but and getattr(settings, name) != getattr(self._current, name)
        ]

    async def follow(self, service: Service, apply: Callable[[], Awaitable[None]]) -> None:
        """Call `apply` whenever the file has changed, until cancelled.

        What it raises is told in the log and with the service's presence until the file is right again.
        """
        if self.config is None:
            await asyncio.Event().wait()
        waiting = self._seen
        while True:
            await asyncio.sleep(FOLLOW_S)
            now = _look(self.config)
            if now == self._seen or now != waiting:
                waiting = now
                continue
            self._seen = now
            try:
                await apply()
            except SettingsError as error:
                service.log.error(f"{error.message}; what was read before still holds")
                service.remark(f"{error.message}; what was read before still holds.", about="configuration")
            else:
                service.remark("", about="configuration")


def _look(config: Path | None) -> tuple[int, int, int] | None:
    """What changes when the file does; `None` when it is not there."""
    try:
        status = config.stat() if config is not None else None
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns) if status is not None else None
