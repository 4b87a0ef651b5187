"""A herd under client load in which anything is killed, stopped and starved at random: a test and `bench/chaos.py`.

A client does what clients do: it asks again when an answer failed or broke off, for `PATIENCE_S`; then its request is
lost. An attempt that fails although nothing has been done to the herd for `CALM_S` is held against it as well.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import psutil

from harness.herd import Herd

MODELS: Final = ("cria", "cria-two", "cria-three")
"""The first is the demo model, the others are copies of it."""
PARTS: Final = ("gateway", "supervisor", "nats-server", "metrics", "logs", "ui")
PATIENCE_S: Final = 60.0
CALM_S: Final = 15.0
"""Time for the herd to be whole again after what was done to it last."""
STOPPED_S: Final = (0.3, 4.0)
STARVED_S: Final = 2.0
PAUSE_S: Final = (0.5, 2.5)
SETTLED_S: Final = 45.0
"""Time for the herd to be what its events say, once it is left alone."""
BUSY: Final = "while True: pass"


@dataclass
class Tally:
    """What came of it."""

    done: Counter[str] = field(default_factory=Counter)
    """What was done to the herd -> how often."""
    answered: int = 0
    repeated: int = 0
    """Attempts that failed and were made again."""
    worst_s: float = 0.0
    """Longest time until an answer, all attempts of a request together."""
    lost: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    """Attempts that failed although the herd had been left alone."""

    def __str__(self) -> str:
        done = ", ".join(f"{count} x {what}" for what, count in sorted(self.done.items()))
        return (
            f"{self.answered} requests answered, {self.repeated} attempts repeated, longest {self.worst_s:.1f} s; "
            f"{len(self.lost)} lost, {len(self.unexplained)} failed without a cause; done to the herd: {done}"
        )


class Chaos:
    """One run. What happens follows from `seed`, as far as machines allow."""

    def __init__(self, herd: Herd, *, seconds: float, clients: int, seed: int) -> None:
        self._herd, self._seconds, self._clients = herd, seconds, clients
        self._random = random.Random(seed)
        self._tally = Tally()
        self._touched_at = time.monotonic()
        self._over = False
        self._numbers = itertools.count(1)

    def run(self) -> Tally:
        demo = self._herd.models_dir / f"{MODELS[0]}.gguf"
        for name in MODELS[1:]:
            shutil.copy(demo, demo.with_stem(name))
        asyncio.run(self._run())
        return self._tally

    async def _run(self) -> None:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            clients = [asyncio.create_task(self._ask_on(client, number)) for number in range(self._clients)]
            deadline = time.monotonic() + self._seconds
            while time.monotonic() < deadline:
                await self._disturb()
                await asyncio.sleep(self._random.uniform(*PAUSE_S))
            self._over = True
            await asyncio.gather(*clients)

    # Clients.

    async def _ask_on(self, client: httpx.AsyncClient, number: int) -> None:
        choice = random.Random(number)
        while not self._over:
            model = choice.choice(MODELS)
            body = {
                "model": model,
                "messages": [{"role": "user", "content": f"What is llamaherd? {next(self._numbers)}"}],
                "max_tokens": choice.choice((1, 8, 64)),
                "stream": choice.random() < 0.5,
            }
            await self._ask(client, body)

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        began = time.monotonic()
        why = ""
        while time.monotonic() - began < PATIENCE_S:
            since = time.monotonic()
            why = await self._attempt(client, body)
            if not why:
                self._tally.answered += 1
                self._tally.worst_s = max(self._tally.worst_s, time.monotonic() - began)
                return
            self._tally.repeated += 1
            if since - self._touched_at > CALM_S:
                self._tally.unexplained.append(why)
            await asyncio.sleep(0.2)
        self._tally.lost.append(why)

    async def _attempt(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        """Why there is no answer; empty: there is."""
        url = f"{self._herd.gateway_url}/v1/chat/completions"
        try:
            async with client.stream("POST", url, json=body) as response:
                data = await response.aread()
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        if response.status_code != 200:
            return f"{response.status_code}: {data.decode()}"
        if body["stream"]:
            return "" if data.endswith(b"data: [DONE]\n\n") else f"a stream that ends with {data[-200:]!r}"
        return "" if json.loads(data)["choices"] else f"no answer in {data!r}"

    # What is done to the herd.

    async def _disturb(self) -> None:
        deeds: list[Callable[[], Any]] = [self._kill_part, self._kill_instance, self._stop, self._starve, self._unload]
        weights = [4, 3, 4, 1, 2]
        deed = self._random.choices(deeds, weights)[0]
        self._touched_at = time.monotonic()
        # Whatever was picked may have just ended by itself.
        try:
            await deed()
        except (StopIteration, KeyError, ProcessLookupError, psutil.NoSuchProcess, IndexError):
            return
        finally:
            self._touched_at = time.monotonic()

    async def _kill_part(self) -> None:
        part = self._random.choice(PARTS)
        self._herd.kill(part)
        self._tally.done[f"kill {part}"] += 1

    async def _kill_instance(self) -> None:
        self._random.choice(self._herd.llama_servers()).kill()
        self._tally.done["kill llama-server"] += 1

    async def _stop(self) -> None:
        """SIGSTOP, and a while later SIGCONT."""
        part = self._random.choice([*PARTS, "llama-server"])
        pid = self._random.choice(self._herd.llama_servers()).pid if part == "llama-server" else self._herd.pid(part)
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._random.uniform(*STOPPED_S))
        finally:
            os.kill(pid, signal.SIGCONT)
        self._tally.done[f"stop {part}"] += 1

    async def _starve(self) -> None:
        """Others take the processors."""
        count = 2 * (os.cpu_count() or 1)
        greedy = [await asyncio.create_subprocess_exec(sys.executable, "-c", BUSY) for _ in range(count)]
        try:
            await asyncio.sleep(STARVED_S)
        finally:
            for process in greedy:
                process.kill()
                await process.wait()
        self._tally.done["starve"] += 1

    async def _unload(self) -> None:
        model = self._random.choice(MODELS)
        with contextlib.suppress(httpx.HTTPError):  # who would have done it may have just been killed
            async with httpx.AsyncClient(timeout=5) as client:
                await client.post(f"{self._herd.ui_url}/api/v1/models/{model}/unload")
        self._tally.done["unload"] += 1


def difference(herd: Herd) -> str:
    """What the events say and the process table does not, or the other way round; empty: they agree."""
    fleet = herd.fleet()["models"]
    instances = [model["instance"] for model in fleet if model["instance"] is not None]
    told = {instance["pid"] for instance in instances if instance["state"] in ("loading", "ready", "draining")}
    moving = [instance["state"] for instance in instances if instance["state"] not in ("ready", "stopped", "failed")]
    there = {process.pid for process in herd.llama_servers()}
    if told == there and not moving:
        return ""
    return f"told: {sorted(told)}, there: {sorted(there)}, on the move: {moving}"


def until_settled(herd: Herd) -> None:
    """Raises `AssertionError` when events and process table still disagree after `SETTLED_S`."""
    herd.eventually(lambda: not difference(herd), within_s=SETTLED_S, what="the events tell what runs")
