"""Tells that something has changed in a set of folders, as far as the system tells: it does not of network drives."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from watchfiles import awatch

from llamaherd_shared.tasks import end

_STEP_MS: Final = 200
"""How often it is looked for news of the system; without any it is told after the next look."""
_GATHER_MS: Final = 1000
"""While changes go on they are told so often."""
_REST_MS: Final = 60_000


class FolderWatch:
    """Of one set of folders at a time, not of what is in folders within."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._changed = asyncio.Event()
        self._folders: Mapping[str, object] = {}
        self._task: asyncio.Task[None] | None = None
        self._trouble = ""

    @property
    def is_on(self) -> bool:
        """Whether changes will be told."""
        return self._task is not None and not self._task.done()

    async def follow(self, folders: Mapping[str, object]) -> None:
        """Watch these from now on: folder -> what tells it from another one that has its name later."""
        if folders == self._folders and self.is_on:
            return
        await self.close()
        self._folders = dict(folders)
        self._task = asyncio.create_task(self._watch(*folders))

    async def wait(self, seconds: float) -> None:
        """Return when something has changed since the last time, or when time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    async def close(self) -> None:
        if self._task is not None:
            await end(self._task)

    async def _watch(self, *folders: str) -> None:
        try:
            async for changes in awatch(
                *folders,
                watch_filter=None,
                debounce=_GATHER_MS,
                step=_STEP_MS,
                rust_timeout=_REST_MS,
                recursive=False,
                ignore_permission_denied=True,
            ):
                self._changed.set()
                if any(path in self._folders for _, path in changes):
                    # Gone or moved: the system watches the folder, whatever has its name now.
                    return
        except FileNotFoundError:
            # Gone since it was listed.
            self._changed.set()
        except (OSError, RuntimeError) as error:
            if str(error) != self._trouble:
                self._log.warning(
                    "the models folder is looked at again and again: it cannot be watched", why=str(error)
                )
            self._trouble = str(error)
