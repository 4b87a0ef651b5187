"""A stand-in for llama-server as a router (`--models-preset`). Its children are fake llama-servers.

It speaks like llama-server 11434.0.0, as far as a supervisor and a gateway use it: listing, events, a preset that is
read again, a queue for loads, the idle model used longest ago evicted, requests passed on by the name in them. Standard
library only.
"""

import asyncio
import configparser
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

FAKE = Path(__file__).with_name("fake_llama_server.py")
EXIT = b"cmd_router_to_child:exit\n"
RUNNING = frozenset({"loading", "loaded"})


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Model:
    name: str
    options: dict[str, str]
    status: str = "unloaded"
    port: int = 0
    exit_code: int = 0
    process: asyncio.subprocess.Process | None = None
    requests: int = 0
    used: int = 0
    leaving: bool = False

    @property
    def args(self) -> list[str]:
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--alias", self.name]
        for name, value in self.options.items():
            words += [f"--{name}"] if value == "true" else [f"--{name}", value]
        return words


@dataclass
class Router:
    flags: dict[str, str]
    key: str
    models: dict[str, Model] = field(default_factory=dict)
    listeners: list[asyncio.Queue[dict[str, Any]]] = field(default_factory=list)
    queue: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    clock: int = 0

    @property
    def most(self) -> int:
        # As if it knew of places that others have.
        return int(os.environ.get("FAKE_ROUTER_MOST", self.flags.get("models_max", "4")))

    def tell(self, event: str, model: str, data: dict[str, Any] | None = None) -> None:
        for listener in self.listeners:
            listener.put_nowait({"model": model, "event": event, **({"data": data} if data is not None else {})})
        self.changed.set()

    # The preset.

    def read_preset(self) -> None:
        parser = configparser.RawConfigParser(comment_prefixes=(";", "#"), interpolation=None, strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(self.flags["models_preset"])
        said = {name: dict(parser[name]) for name in parser.sections() if name != "*"}
        for name in [name for name in self.models if name not in said]:
            if self.models[name].status in RUNNING:
                self.stop(self.models[name], f"(reload) unloading model name={name} (source updated or removed)")
            del self.models[name]
        for name, options in said.items():
            if "bogus" in options:
                raise Refused(500, f"option 'bogus' not recognized in preset '{name}'")
            model = self.models.setdefault(name, Model(name, options))
            if model.status in RUNNING and model.options != options:
                self.stop(model, f"(reload) unloading model name={name} (source updated or removed)")
            model.options = options
        self.tell("models_reload", "*")

    # Processes.

    async def load(self, model: Model) -> None:
        """Wait for a place, have it loaded. Raises `Refused`."""
        self.queue.append(model.name)
        try:
            while model.status == "unloaded" and not self.may_begin(model):
                await self.next_change()
            if model.status == "unloaded":
                await self.spawn(model)
        finally:
            self.queue.remove(model.name)
            self.changed.set()
        while model.status == "loading":
            await self.next_change()
        if model.status != "loaded":
            raise Refused(500, f"model name={model.name} failed to load")

    def may_begin(self, model: Model) -> bool:
        running = [each for each in self.models.values() if each.status in RUNNING]
        if self.queue[0] != model.name:
            return False
        if not self.most or len(running) < self.most:
            return True
        idle = [each for each in running if each.status == "loaded" and not each.requests and not each.leaving]
        if idle and not any(each.leaving for each in running):
            victim = min(idle, key=lambda each: each.used)
            self.stop(victim, f"evicting idle LRU name={victim.name} for a queued request")
        return False

    async def next_change(self) -> None:
        self.changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), 0.05)

    async def spawn(self, model: Model) -> None:
        model.port, model.status, model.exit_code = await free_port(), "loading", 0
        log("I", f"srv          load: spawning server instance with name={model.name} on port {model.port}")
        model.process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(FAKE), *model.args,
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LLAMA_SERVER_ROUTER_PORT": self.flags["port"]},
        )  # fmt: skip
        self.tell("model_status", model.name, {"status": "loading"})
        keep(self.watch(model, model.process))
        keep(self.await_loaded(model, model.process))

    async def await_loaded(self, model: Model, process: asyncio.subprocess.Process) -> None:
        share = 0.0
        while process.returncode is None and model.status == "loading":
            progress = {"stages": ["text_model"], "current": "text_model", "value": share}
            self.tell("status_change", model.name, {"status": "loading", "progress": progress})
            share = min(1.0, share + 0.25)
            if await is_well(model.port):
                model.status = "loaded"
                self.tell("status_change", model.name, {"status": "loaded", "info": {"id": model.name}})
                return
            await asyncio.sleep(0.02)

    async def watch(self, model: Model, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            print(f"[{model.port:5d}] {line.decode().rstrip()}", file=sys.stderr, flush=True)
        code = await process.wait()
        model.status, model.leaving, model.exit_code = "unloaded", False, code if code >= 0 else 1
        log("I", f"srv           run: instance name={model.name} exited with status {model.exit_code}")
        self.tell("status_change", model.name, {"status": "unloaded", "exit_code": model.exit_code})

    def stop(self, model: Model, why: str) -> None:
        log("I", f"srv    unload_lru: {why}")
        if model.process is None or model.process.returncode is not None:
            return
        if model.status == "loading":
            model.process.kill()
        elif model.process.stdin is not None:
            model.leaving = True
            model.process.stdin.write(EXIT)

    # HTTP.

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            body = await reader.readexactly(int(headers.get("content-length") or 0))
            method, target, _ = lines[0].split(" ")
            try:
                await self.answer(method, target, headers, body, reader, writer)
            except Refused as refused:
                error = {"error": {"message": str(refused), "type": "server_error", "code": refused.status}}
                await send(writer, refused.status, json.dumps(error, separators=(",", ":")).encode())
        writer.close()

    async def answer(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        address = urlsplit(target)
        query, path = dict(parse_qsl(address.query)), address.path
        if path == "/health":
            await send(writer, 200, b'{"status":"ok"}')
            return
        if headers.get("authorization") != f"Bearer {self.key}":
            raise Refused(401, "Invalid API Key")
        if path == "/models" and method == "GET":
            if "reload" in query:
                self.read_preset()
            await send(writer, 200, json.dumps({"data": [listed(model) for model in self.models.values()]}).encode())
        elif path == "/models/sse":
            await self.send_events(reader, writer)
        elif path == "/models/unload":
            model = self.find(json.loads(body)["model"])
            if model.status not in RUNNING:
                raise Refused(400, "model is not running")
            self.stop(model, f"stopping model instance name={model.name}")
            await send(writer, 200, b'{"success":true}')
        else:
            model = self.find(query.get("model") if method == "GET" else json.loads(body).get("model"))
            if query.get("autoload") == "true" and model.status != "loaded":
                await abandoned_with(reader, self.load(model))
            if model.status not in RUNNING:
                raise Refused(400, "model is not loaded")
            await self.pass_on(model, method, target, headers, body, reader, writer)

    def find(self, name: str | None) -> Model:
        if not name:
            raise Refused(400, "model name is missing from the request")
        if name not in self.models:
            raise Refused(400, f"model '{name}' not found")
        return self.models[name]

    async def send_events(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listener: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.listeners.append(listener)
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                event = f"data: {json.dumps(await listener.get())}\n\n".encode()
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await writer.drain()
        finally:
            self.listeners.remove(listener)

    async def pass_on(
        self,
        model: Model,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        if method == "POST":
            self.clock += 1
            model.used = self.clock
        model.requests += 1
        try:
            kept = {name: value for name, value in headers.items() if name and name != "connection"}
            lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in kept.items())]
            request = "\r\n".join([*lines, "connection: close", "", ""]).encode() + body
            await abandoned_with(reader, relay(model.port, request, writer))
        finally:
            model.requests -= 1
            self.changed.set()


async def relay(port: int, request: bytes, writer: asyncio.StreamWriter) -> None:
    """What the child answers; its end, when that comes too early, is told as the real one tells it."""
    words, answer = b"proxy error: Failed to read connection", b""
    with contextlib.suppress(OSError):
        child, to_child = await asyncio.open_connection("127.0.0.1", port)
        to_child.write(request)
        while data := await child.read(65536):
            answer += data
            writer.write(data)
            await writer.drain()
        to_child.close()
    if not answer:
        await send(writer, 500, words)
    elif b"chunked" in answer.partition(b"\r\n\r\n")[0] and not answer.endswith(b"\r\n0\r\n\r\n"):
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(words), words))


async def abandoned_with(reader: asyncio.StreamReader, work: Any) -> None:
    """Do it unless the client leaves first."""
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
    finally:
        doing.cancel()
        leaving.cancel()


async def send(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    with contextlib.suppress(ConnectionError):
        await writer.drain()


def listed(model: Model) -> dict[str, Any]:
    status = {"value": model.status, "args": [sys.executable, *model.args], "exit_code": model.exit_code}
    return {"id": model.name, "object": "model", "status": status}


async def is_well(port: int) -> bool:
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read(64)
        writer.close()
        return b" 200 " in answer
    return False


async def free_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


def log(level: str, text: str) -> None:
    print(f"0.00.000.000 {level} {text}", file=sys.stderr, flush=True)


TASKS: set["asyncio.Task[None]"] = set()


def keep(work: Any) -> None:
    task = asyncio.ensure_future(work)
    TASKS.add(task)
    task.add_done_callback(TASKS.discard)


async def serve(flags: dict[str, str]) -> int:
    router = Router(flags, os.environ.get("LLAMA_API_KEY", ""))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    router.read_preset()
    await asyncio.start_server(router.connection, flags["host"], int(flags["port"]))
    log("I", f"srv  llama_server: listening on http://{flags['host']}:{flags['port']}")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopped.wait(), 300)
    running = [model for model in router.models.values() if model.status in RUNNING]
    for model in running:
        router.stop(model, f"stopping model instance name={model.name}")
    await asyncio.gather(*(model.process.wait() for model in running if model.process is not None))
    return 0


def main() -> int:
    words = sys.argv[1:]
    pairs = zip(words, [*words[1:], ""], strict=True)
    flags = {word[2:].replace("-", "_"): value for word, value in pairs if word.startswith("--")}
    return asyncio.run(serve(flags))


if __name__ == "__main__":
    sys.exit(main())
