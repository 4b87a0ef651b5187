"""Tells that something has changed in a set of folders, as far as the system tells: it does not of network drives.

`watchfiles.watch` in a thread of its own, not `awatch`: that imports half of anyio once it runs, which holds the event
loop while it is compiled, and stays in memory.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from watchfiles import watch

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
        self._watch: _Watch | None = None
        self._trouble = ""

    @property
    def is_on(self) -> bool:
        """Whether changes will be told."""
        return self._watch is not None and not self._watch.over

    def follow(self, folders: Mapping[str, object]) -> None:
        """Watch these from now on: folder -> what tells it from another one that has its name later."""
        if folders == self._folders and self.is_on:
            return
        self.close()
        self._folders = dict(folders)
        self._watch = _Watch(tuple(folders), changed=self._changed.set, failed=self._fail)

    async def wait(self, seconds: float) -> None:
        """Return when something has changed since the last time, or when time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.stop()

    def _fail(self, why: str) -> None:
        if why != self._trouble:
            self._log.warning("the models folder is looked at again and again: it cannot be watched", why=why)
        self._trouble = why


class _Watch:
    """One thread that waits for news of the system, until it is stopped or has nothing more to tell."""

    def __init__(self, folders: tuple[str, ...], *, changed: Callable[[], None], failed: Callable[[str], None]) -> None:
        self.over = False
        self._folders = folders
        self._changed, self._failed = changed, failed
        self._stopped = threading.Event()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name="folder-watch", daemon=True).start()

    def stop(self) -> None:
        """Tell nothing more; returns at once. The thread ends within one step."""
        self.over = True
        self._stopped.set()

    def _run(self) -> None:
        end: tuple[Any, ...] = (self._changed,)
        try:
            self._wait_for_news()
        except FileNotFoundError:
            pass  # Gone since it was listed: that is a change too.
        except (OSError, RuntimeError) as error:
            end = (self._failed, str(error))
        self.over = True
        self._tell(*end)

    def _wait_for_news(self) -> None:
        for changes in watch(
            *self._folders,
            watch_filter=None,
            debounce=_GATHER_MS,
            step=_STEP_MS,
            rust_timeout=_REST_MS,
            stop_event=self._stopped,
            recursive=False,
            ignore_permission_denied=True,
        ):
            if any(path in self._folders for _, path in changes):
                # Gone or moved: the system watches the folder, whatever has its name now.
                return
            self._tell(self._changed)

    def _tell(self, what: Callable[..., None], *words: str) -> None:
        if not self._stopped.is_set():
            # A loop that has ended meanwhile wants no news.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(what, *words)
