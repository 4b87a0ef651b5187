#!/usr/bin/env python3
"""A stand-in for llama-server: a real process that speaks its HTTP and misbehaves on request. Standard library only.

It takes llama-server's flags (those it does not know are ignored) and answers like llama-server 11434.0.0 as seen on
the wire: 503 on every route while loading, the API key on every route but `/health`, a chunked event stream that is
followed by a close although `Keep-Alive` was announced, a close after every error and after the 100th plain answer.

How it misbehaves is said by `Switches`, from weakest to strongest: environment `FAKE_LLAMA_SLOW_LOAD_S=5`, a JSON
object in `<model file>.fake.json`, or a flag `--slow-load-s 5`. The JSON file is read again on every request, so a
test can change the behaviour of a running server. Each start appends a line (its pid) to `<model file>.starts`.

`GET /fake/state` (no key) tells what happened: requests, cancelled, active, connections, starts.
"""

import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
import threading
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, fields, replace
from http import HTTPStatus
from pathlib import Path
from struct import pack
from typing import Any

COMPLETIONS = frozenset({"/v1/chat/completions", "/v1/completions", "/completion", "/completions", "/infill"})
EMBEDDINGS = frozenset({"/v1/embeddings", "/embeddings", "/embedding"})
RERANKINGS = frozenset({"/v1/rerank", "/v1/reranking", "/rerank", "/reranking"})
GENERATING = COMPLETIONS | EMBEDDINGS | RERANKINGS | {"/v1/audio/transcriptions", "/v1/systemone"}
"""Each request to these takes a slot."""
QUESTIONS = frozenset(
    {"/tokenize", "/detokenize", "/apply-template", "/v1/chat/completions/input_tokens", "/v1/responses/input_tokens"}
)

PLAIN_ANSWERS_PER_CONNECTION = 100
"""cpp-httplib's default: the 100th answer carries `Connection: close`."""


@dataclass(frozen=True)
class Switches:
    slow_load_s: float = 0.0
    """Answers 503 for this long after the start."""
    exit_on_start: int | None = None
    """Exits with this code before it listens."""
    exit_after_s: float | None = None
    """Exits with `exit_code` this long after the start, loading or not."""
    exit_code: int = 1
    only_first_starts: int = 0
    """`exit_on_start` and `exit_after_s` hold for the first this many starts with the model file; 0: for all."""
    ignore_sigterm: bool = False
    hang_health: bool = False
    """Once loaded, `/health` takes the request and never answers."""
    busy_slots: int = 0
    """`/slots` shows at least this many slots at work."""
    tokens: int = 8
    """Tokens per answer, unless `max_tokens` is less."""
    text: str = ""
    """What it says; by default `tok0 tok1 ...`."""
    delay_first_token_s: float = 0.0
    delay_token_s: float = 0.0
    die_mid_stream: int | None = None
    """Kills itself with SIGKILL after this many tokens of an answer."""
    cut_mid_stream: int | None = None
    """Closes the connection without the end of the answer after this many tokens; lives on."""
    error_mid_stream: int | None = None
    """A stream goes wrong after this many tokens: an error as its last event, as llama-server does it."""
    no_tokens: bool = False
    """A stream ends before it has said anything: without a single event."""
    delay_question_s: float = 0.0
    """Before `/tokenize`, `/apply-template` and the other routes that count and render are answered."""
    die_on_cancel: bool = False
    """Kills itself when a client leaves in the middle of its answer."""
    die_on_request: bool = False
    """Kills itself when a completion request arrives, before any answer."""
    error_status: int | None = None
    """Every completion request is answered with this status."""
    close_keepalive_early: bool = False
    """Closes after each plain answer although it announced `Keep-Alive`."""
    keepalive_s: float = 5.0
    log_lines: tuple[str, ...] = ()
    """Printed at the start, before anything else."""
    raw_lines: tuple[str, ...] = ()
    """Printed behind these as they are, without time and level."""
    flood_lines: int = 0
    """Prints this many lines at the start."""
    chatter_s: float = 0.0
    """Prints a numbered line this often."""
    grow_bytes: int = 0
    """While it loads it takes so much more memory every tenth of a second."""
    read_bytes: int = 0
    """While it loads it reads so much every tenth of a second."""
    takes_mib: int = 0
    """Has this much memory of its own from the start."""
    devices: tuple[str, ...] = ()
    """What `--list-devices` prints: `CUDA0: Fake (1024 MiB, 1000 MiB free)`."""
    max_life_s: float = 300.0
    """Ends by itself after this long, so that no failing test leaves it behind for good."""


@dataclass
class State:
    model_path: Path
    alias: str
    host: str
    port: int
    api_key: str
    slots: int
    context_tokens: int
    switches: Switches
    flags: dict[str, str]
    began: float = field(default_factory=time.monotonic)
    requests: int = 0
    cancelled: int = 0
    active: int = 0
    asking: int = 0
    """Questions (`delay_question_s`) being answered."""
    said: int = 0
    """Tokens of all answers."""
    freed_s: float = 0.0
    """When a slot was last given back, on the machine's monotonic clock."""
    connections: int = 0
    paths: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """Of the answers it has given or is giving."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of the last completion request."""
    body: Any = None
    """Body of the last completion request."""
    memory: bytes = b""

    @property
    def loading(self) -> bool:
        return time.monotonic() - self.began < self.switches.slow_load_s

    @property
    def fake_json(self) -> Path:
        return self.model_path.with_name(self.model_path.name + ".fake.json")

    @property
    def starts_file(self) -> Path:
        return self.model_path.with_name(self.model_path.name + ".starts")

    @property
    def starts(self) -> int:
        return len(self.starts_file.read_text().split()) if self.starts_file.exists() else 0


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Refused(Exception):
    def __init__(self, status: int, message: str, kind: str) -> None:
        self.status = status
        self.error = {"error": {"message": message, "type": kind, "code": status}}


def install_fake_llama_server(folder: Path) -> Path:
    """Write an executable called `llama-server` that starts this file with the running Python."""
    wrapper = folder / "llama-server"
    # -I and -S: no site-packages, which halves the start-up time.
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{Path(__file__).resolve()}" "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return wrapper


def set_switches(model_path: Path, **switches: Any) -> None:
    """Write `<model file>.fake.json` for the next start, or for the running server."""
    target = model_path.with_name(model_path.name + ".fake.json")
    part = target.with_name(target.name + ".part")
    part.write_text(json.dumps(switches))
    part.replace(target)


# --- configuration ---------------------------------------------------------------------------------------------------


def _convert(name: str, value: Any) -> Any:
    if not isinstance(value, str) or name in {"text"}:
        return tuple(value) if isinstance(value, list) else value
    if name in ("log_lines", "raw_lines"):
        return tuple(value.split("\n"))
    return json.loads(value)


def _parse_flags(argv: list[str]) -> dict[str, str]:
    """Long and short flags by name without dashes; a flag without a value is `true`."""
    flags: dict[str, str] = {}
    name = ""
    for word in argv:
        if word.startswith("-") and not word.lstrip("-").isdigit() and word.strip("-"):
            name = word.lstrip("-").replace("-", "_")
            flags[name] = "true"
        elif name:
            flags[name], name = word, ""
    return flags


def _read_switches(flags: dict[str, str], fake_json: Path) -> Switches:
    known = {entry.name for entry in fields(Switches)}
    chosen: dict[str, Any] = {}
    for key, value in os.environ.items():
        if key.startswith("FAKE_LLAMA_") and (name := key.removeprefix("FAKE_LLAMA_").lower()) in known:
            chosen[name] = _convert(name, value)
    with contextlib.suppress(OSError, ValueError):
        chosen |= {key: _convert(key, value) for key, value in json.loads(fake_json.read_text()).items()}
    chosen |= {key: _convert(key, value) for key, value in flags.items() if key in known}
    return replace(Switches(), **chosen)


def read_command_line(argv: list[str]) -> State:
    flags = _parse_flags(argv)

    def pick(*names: str, default: str) -> str:
        return next((flags[name] for name in names if name in flags), default)

    model_path = Path(pick("m", "model", default="model.gguf"))
    return State(
        model_path=model_path,
        alias=pick("a", "alias", default=model_path.name),
        host=pick("host", default="127.0.0.1"),
        port=int(pick("port", default="8080")),
        api_key=pick("api_key", default=os.environ.get("LLAMA_API_KEY", "")),
        slots=max(1, int(pick("np", "parallel", default="1"))),
        context_tokens=int(pick("c", "ctx_size", default="0")) or 512,
        switches=_read_switches(flags, model_path.with_name(model_path.name + ".fake.json")),
        flags=flags,
    )


# --- log -------------------------------------------------------------------------------------------------------------

BEGAN = time.monotonic()


def log(level: str, text: str) -> None:
    """One line as llama-server's log writes it: minutes.seconds.millis.micros, level letter, text."""
    us = int((time.monotonic() - BEGAN) * 1e6)
    stamp = f"{us // 60_000_000}.{us // 1_000_000 % 60:02d}.{us // 1000 % 1000:03d}.{us % 1000:03d}"
    print(f"{stamp} {level} {text}", file=sys.stderr, flush=True)


# --- HTTP ------------------------------------------------------------------------------------------------------------


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *rest = head.split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in rest if line)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path.partition("?")[0], headers, body)


def _head(status: int, *lines: str) -> bytes:
    start = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
    return "\r\n".join([start, "Server: llama.cpp", "Access-Control-Allow-Origin: ", *lines, "", ""]).encode()


def _plain(status: int, body: Any, *, close: bool) -> bytes:
    """`body`: a text as it is, anything else as JSON."""
    is_text = isinstance(body, str)
    text = body.encode() if is_text else json.dumps(body, separators=(",", ":")).encode()
    kept = "Connection: close" if close else "Keep-Alive: timeout=5, max=100"
    kind = "Content-Type: " + ("text/plain; version=0.0.4" if is_text else "application/json; charset=utf-8")
    return _head(status, kind, f"Content-Length: {len(text)}", kept) + text


class Reader(asyncio.StreamReader):
    """Tells that the client is gone without taking a byte from the next request."""

    def __init__(self) -> None:
        super().__init__(limit=2**24)
        self.ended = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.ended.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.ended.set()


class Server:
    def __init__(self, state: State) -> None:
        self.state = state
        self.free_slots = asyncio.Semaphore(state.slots)
        self.tasks = 0
        self.routes: dict[tuple[str, str], Callable[[Request], Any]] = {
            ("GET", "/health"): lambda _: {"status": "ok"},
            ("GET", "/v1/health"): lambda _: {"status": "ok"},
            ("GET", "/props"): self.props,
            ("GET", "/slots"): self.slots,
            ("GET", "/v1/models"): self.models,
            ("GET", "/models"): self.models,
            ("GET", "/metrics"): lambda _: "llamacpp:prompt_tokens_total 0\n",
            ("GET", "/lora-adapters"): lambda _: [],
            ("POST", "/tokenize"): lambda request: {"tokens": list(_text(_json(request).get("content")).encode())},
            ("POST", "/detokenize"): lambda request: {"content": "text"},
            ("POST", "/apply-template"): lambda request: {"prompt": _text(_json(request).get("messages"))},
            ("POST", "/v1/chat/completions/control"): self.control,
            **{("POST", path): self.count for path in QUESTIONS if path.endswith("/input_tokens")},
        }

    def protocol(self) -> asyncio.StreamReaderProtocol:
        reader = Reader()

        async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.connection(reader, writer)

        return asyncio.StreamReaderProtocol(reader, connected)

    async def connection(self, reader: Reader, writer: asyncio.StreamWriter) -> None:
        self.state.connections += 1
        try:
            for count in range(1, PLAIN_ANSWERS_PER_CONNECTION + 1):
                async with asyncio.timeout(self.state.switches.keepalive_s):
                    request = await _read_request(reader)
                if request is None or not await self.answer(request, reader, writer, count):
                    return
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, request: Request, reader: Reader, writer: asyncio.StreamWriter, count: int) -> bool:
        """Answer one request. Returns whether the connection stays open."""
        state = self.state
        state.switches = _read_switches(state.flags, state.fake_json)
        last = count == PLAIN_ANSWERS_PER_CONNECTION or request.headers.get("connection", "").lower() == "close"
        try:
            if request.path == "/fake/state":
                body: Any = self.fake_state()
            elif request.method == "POST" and request.path in GENERATING:
                self.check(request)
                return await self.complete(request, reader, writer, last)
            else:
                self.check(request)
                if request.path in {"/health", "/v1/health"} and state.switches.hang_health:
                    await asyncio.sleep(state.switches.max_life_s)
                route = self.routes.get((request.method, request.path))
                if route is None:
                    raise Refused(404, "File Not Found", "not_found_error")
                if request.path in QUESTIONS and state.switches.delay_question_s:
                    await self.hesitate(reader)
                body = route(request)
        except Refused as refused:
            writer.write(_plain(refused.status, refused.error, close=True))
            await writer.drain()
            return False
        writer.write(_plain(200, body, close=last))
        await writer.drain()
        return not last and not state.switches.close_keepalive_early

    def check(self, request: Request) -> None:
        public = request.path in {"/health", "/v1/health"}
        key = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("x-api-key", "")
        if not public and self.state.api_key and key != self.state.api_key:
            log("W", "srv    operator(): unauthorized: Invalid API Key")
            raise Refused(401, "Invalid API Key", "authentication_error")
        if self.state.loading:
            raise Refused(503, "Loading model", "unavailable_error")

    def fake_state(self) -> dict[str, Any]:
        state = self.state
        return {
            "requests": state.requests,
            "cancelled": state.cancelled,
            "active": state.active,
            "asking": state.asking,
            "said": state.said,
            "freed_s": state.freed_s,
            "connections": state.connections,
            "starts": state.starts,
            "pid": os.getpid(),
            "paths": state.paths,
            "headers": state.headers,
            "body": state.body,
            "flags": state.flags,
        }

    def props(self, _: Request) -> Any:
        state = self.state
        return {
            "default_generation_settings": {"n_ctx": state.context_tokens // state.slots},
            "total_slots": state.slots,
            "model_alias": state.alias,
            "model_path": str(state.model_path),
            "build_info": "fake",
        }

    def slots(self, _: Request) -> Any:
        busy = max(self.state.active, self.state.switches.busy_slots)
        each = self.state.context_tokens // self.state.slots
        state = self.state
        task = {"id_task": state.requests, "n_prompt_tokens": state.said} if state.requests else {}
        return [{"id": n, "n_ctx": each, "is_processing": n < busy, **task} for n in range(self.state.slots)]

    def models(self, _: Request) -> Any:
        entry = {"id": self.state.alias, "object": "model", "created": int(time.time()), "owned_by": "llamacpp"}
        return {"object": "list", "data": [entry]}

    def count(self, request: Request) -> Any:
        body = _json(request)
        return {"object": "response.input_tokens", "input_tokens": len(_text(body.get("messages", body.get("input"))))}

    def control(self, request: Request) -> Any:
        """Knows its own answers only."""
        known = _json(request).get("id") in self.state.ids
        return {"success": known} if known else {"success": False, "message": "no active completion for this id"}

    async def hesitate(self, reader: Reader) -> None:
        """Until the question may be answered. Raises `ConnectionError` when its asker has left."""
        self.state.asking += 1
        try:
            await asyncio.wait_for(reader.ended.wait(), self.state.switches.delay_question_s)
        except TimeoutError:
            return
        finally:
            self.state.asking -= 1
        raise ConnectionError

    # --- completions -----------------------------------------------------------------------------------------------

    async def complete(self, request: Request, reader: Reader, writer: asyncio.StreamWriter, last: bool) -> bool:
        state, switches = self.state, self.state.switches
        is_form = request.headers.get("content-type", "").startswith("multipart/")
        body = {} if is_form else _json(request)
        state.requests += 1
        state.paths.append(request.path)
        state.headers, state.body = request.headers, body
        if switches.die_on_request:
            os.kill(os.getpid(), signal.SIGKILL)
        if switches.error_status is not None:
            raise Refused(switches.error_status, "told to fail", "server_error")
        work = asyncio.create_task(self.generate(request, body, writer, last))
        # A client that leaves ends the task, as in llama-server.
        gone = asyncio.create_task(reader.ended.wait())
        self.tasks += 1
        task_id = self.tasks
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            gone.cancel()
            if isinstance(work.exception(), ConnectionError):
                state.cancelled += 1
            return work.result()
        if switches.die_on_cancel:
            os.kill(os.getpid(), signal.SIGKILL)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        state.cancelled += 1
        log("W", f"srv          stop: cancel task, id_task = {task_id}")
        return False

    async def generate(self, request: Request, body: dict[str, Any], writer: asyncio.StreamWriter, last: bool) -> bool:
        state = self.state
        async with self.free_slots:
            state.active += 1
            try:
                answer = Answer(state, request.path, body)
                state.ids.append(answer.id)
                if body.get("stream") and request.path in COMPLETIONS:
                    await self.stream(answer, writer)
                    return False
                async for _ in answer.tokens():
                    pass
                writer.write(_plain(200, answer.whole(), close=last))
                await writer.drain()
                return not last and not state.switches.close_keepalive_early
            finally:
                state.active -= 1
                state.freed_s = time.monotonic()
                log("I", "slot      release: id  0 | task 0 | stop processing: n_tokens = 30, truncated = 0")

    async def stream(self, answer: "Answer", writer: asyncio.StreamWriter) -> None:
        def chunk(payload: bytes) -> bytes:
            return b"%x\r\n%s\r\n" % (len(payload), payload)

        def event(value: Any) -> bytes:
            return chunk(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")

        kinds = ("X-Accel-Buffering: no", "Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        head_sent = False
        async for token in answer.tokens():
            if not head_sent:
                # Like the real one, nothing is sent before there is something to say.
                writer.write(_head(200, *kinds, "Keep-Alive: timeout=5, max=100"))
                head_sent = True
            writer.write(event(answer.chunk(token)))
            await writer.drain()
        if answer.cut:
            writer.transport.abort()
            return
        if not head_sent:
            writer.write(_head(200, *kinds, "Keep-Alive: timeout=5, max=100"))
        for value in answer.ending():
            writer.write(event(value))
        if answer.has_done:
            writer.write(chunk(b"data: [DONE]\n\n"))
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _json(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(request.body or b"{}")
    except ValueError as error:
        raise Refused(400, f"[json.exception.parse_error.101] parse error: {error}", "invalid_request_error") from error
    if not isinstance(body, dict):
        raise Refused(400, "the body must be an object", "invalid_request_error")
    return body


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class Answer:
    """One answer: its tokens, and its text in the shape of its route."""

    def __init__(self, state: State, path: str, body: dict[str, Any]) -> None:
        self.state, self.path, self.body = state, path, body
        self.chat, self.native = path.endswith("/chat/completions"), not path.startswith("/v1/")
        switches = state.switches
        words = switches.text.split() if switches.text else [f"tok{n}" for n in range(switches.tokens)]
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("n_predict")
        self.words = words[:limit] if isinstance(limit, int) and limit >= 0 else words
        self.finish = "length" if len(self.words) < len(words) else "stop"
        self.said: list[str] = []
        self.cut = self.broken = False
        prompt = json.dumps(body.get("messages", body.get("prompt", "")))
        self.prompt_tokens = len(prompt.split())
        self.began = time.monotonic()
        self.first_at = self.began
        self.base = {"created": int(time.time()), "model": state.alias, "system_fingerprint": "fake"}
        self.id = f"chatcmpl-{os.getpid()}-{state.requests}"

    async def tokens(self) -> AsyncIterator[str]:
        switches = self.state.switches
        if switches.delay_first_token_s:
            await asyncio.sleep(switches.delay_first_token_s)
        self.first_at = time.monotonic()
        if switches.no_tokens:
            return
        for number, word in enumerate(self.words):
            if number == switches.error_mid_stream:
                self.broken = True
                return
            if number == switches.die_mid_stream:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == switches.cut_mid_stream:
                self.cut = True
                return
            text = word if number == 0 else " " + word
            self.said.append(text)
            self.state.said += 1
            yield text
            if switches.delay_token_s:
                await asyncio.sleep(switches.delay_token_s)

    def timings(self) -> dict[str, Any]:
        prompt_ms, predicted_ms = (self.first_at - self.began) * 1e3, (time.monotonic() - self.first_at) * 1e3
        count = len(self.said)
        return {
            "cache_n": 0,
            "prompt_n": self.prompt_tokens,
            "prompt_ms": prompt_ms,
            "prompt_per_second": self.prompt_tokens / max(prompt_ms, 1e-3) * 1e3,
            "predicted_n": count,
            "predicted_ms": predicted_ms,
            "predicted_per_second": count / max(predicted_ms, 1e-3) * 1e3,
        }

    def usage(self) -> dict[str, Any]:
        count = len(self.said)
        return {
            "completion_tokens": count,
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + count,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    def whole(self) -> Any:
        text = "".join(self.said)
        if self.path in EMBEDDINGS:
            return self.vectors()
        if self.path in RERANKINGS:
            return {"model": self.state.alias, "object": "list", "results": [{"index": 0, "relevance_score": 0.5}]}
        if self.path == "/v1/audio/transcriptions":
            return {"text": text}
        if self.native:
            return self.chunk(text) | self.native_ending()
        choice: dict[str, Any] = {"finish_reason": self.finish, "index": 0}
        choice |= {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text, "logprobs": None}
        kind = "chat.completion" if self.chat else "text_completion"
        ends = {"usage": self.usage(), "id": self.id, "timings": self.timings()}
        return {"choices": [choice], **self.base, "object": kind, **ends}

    def vectors(self) -> dict[str, Any]:
        given = self.body.get("input", "")
        texts = given if isinstance(given, list) else [given]
        rows = [{"object": "embedding", "index": n, "embedding": self.vector(str(t))} for n, t in enumerate(texts)]
        count = sum(len(str(text)) for text in texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "model": self.state.alias, "data": rows, "usage": usage}

    def vector(self, text: str) -> Any:
        numbers = [len(text) / 8, 0.5]
        return b64encode(pack("<2f", *numbers)).decode() if self.body.get("encoding_format") == "base64" else numbers

    def chunk(self, text: str | None, finish: str | None = None) -> dict[str, Any]:
        if self.native:
            return {"index": 0, "content": text or "", "tokens": [], "stop": False, "id_slot": 0}
        choice: dict[str, Any] = {"finish_reason": finish, "index": 0}
        if self.chat:
            choice["delta"] = {} if text is None else {"content": text}
        else:
            choice |= {"text": text or "", "logprobs": None}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {"choices": [choice], **self.base, "id": self.id, "object": kind}

    def native_ending(self) -> dict[str, Any]:
        kind = "limit" if self.finish == "length" else "eos"
        return {"stop": True, "stop_type": kind, "model": self.state.alias, "timings": self.timings()}

    @property
    def has_done(self) -> bool:
        """Whether `[DONE]` ends the stream."""
        return not (self.native or self.broken or self.state.switches.no_tokens)

    def ending(self) -> list[dict[str, Any]]:
        """The last chunks: timings always, in a chunk of their own with `usage` when that was asked for (chat)."""
        if self.state.switches.no_tokens:
            return []
        if self.broken:
            return [{"error": {"code": 500, "message": "told to break", "type": "server_error"}}]
        final = self.chunk(None, self.finish)
        if self.native:
            return [final | self.native_ending()]
        if not self.chat:
            return [final | {"usage": self.usage(), "timings": self.timings()}]
        options = self.body.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            return [final, {**final, "choices": [], "usage": self.usage(), "timings": self.timings()}]
        return [final | {"timings": self.timings()}]


# --- life ------------------------------------------------------------------------------------------------------------


async def chatter(every_s: float) -> None:
    number = 0
    while every_s:
        log("I", f"srv  chatter: {number}")
        number += 1
        await asyncio.sleep(every_s)


async def labour(state: State) -> None:
    """What a load does besides writing lines."""
    held = []
    zeros = os.open("/dev/zero", os.O_RDONLY)
    while state.loading:
        held.append(bytearray(b"x" * state.switches.grow_bytes))
        os.read(zeros, state.switches.read_bytes)
        await asyncio.sleep(0.1)
    os.close(zeros)


def obey_router(loop: asyncio.AbstractEventLoop, end: Callable[[int, str], None]) -> None:
    """The router says when to end, and without it there is nothing to live for."""
    while data := os.read(0, 4096):
        if b"cmd_router_to_child:exit" in data:
            loop.call_soon_threadsafe(end, 0, "exit command received, exiting...")
            return
    os._exit(1)


async def serve(state: State) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(code: int, why: str) -> None:
        log("I", f"srv    operator(): {why}")
        if not ended.done():
            ended.set_result(code)

    if state.switches.ignore_sigterm:
        loop.add_signal_handler(signal.SIGTERM, lambda: log("W", "srv    operator(): SIGTERM ignored"))
    else:
        loop.add_signal_handler(signal.SIGTERM, end, 0, "operator(): cleaning up before exit...")
    loop.add_signal_handler(signal.SIGINT, end, 0, "operator(): cleaning up before exit...")
    loop.call_later(state.switches.max_life_s, end, 3, "lived long enough")
    if state.switches.exit_after_s is not None:
        # At once, like a crash: an interpreter that shuts down would refuse connections for a while before.
        loop.call_later(state.switches.exit_after_s, os._exit, state.switches.exit_code)
    if "LLAMA_SERVER_ROUTER_PORT" in os.environ:
        threading.Thread(target=obey_router, args=(loop, end), daemon=True).start()
    server = await loop.create_server(Server(state).protocol, state.host, state.port, backlog=512)
    log("I", f"srv  llama_server: listening on http://{state.host}:{state.port}")
    log("I", f"srv    load_model: loading model '{state.model_path}'")
    loop.call_later(state.switches.slow_load_s, log, "I", "srv  llama_server: model loaded")
    chatting = asyncio.create_task(chatter(state.switches.chatter_s))
    labouring = asyncio.create_task(labour(state))
    code = await ended
    chatting.cancel()
    labouring.cancel()
    server.close()
    return code


def main() -> int:
    state = read_command_line(sys.argv[1:])
    if "models_preset" in state.flags:
        router = Path(__file__).with_name("fake_router.py")
        os.execv(sys.executable, [sys.executable, "-I", "-S", str(router), *sys.argv[1:]])
    if "version" in state.flags:
        print("version: fake", file=sys.stderr)
        return 0
    if "list_devices" in state.flags:
        print("Available devices:", *(f"  {device}" for device in state.switches.devices), sep="\n")
        return 0
    with state.starts_file.open("a") as file:
        file.write(f"{os.getpid()}\n")
    log("I", "srv  llama_server: initializing ...")
    for line in state.switches.log_lines:
        log("I", line)
    for line in state.switches.raw_lines:
        print(line, file=sys.stderr, flush=True)
    for number in range(state.switches.flood_lines):
        log("I", f"srv  flood: line {number}")
    if state.switches.only_first_starts and state.starts > state.switches.only_first_starts:
        state.flags["exit_on_start"] = state.flags["exit_after_s"] = "null"
        state.switches = replace(state.switches, exit_on_start=None, exit_after_s=None)
    if state.switches.exit_on_start is not None:
        log("E", f"srv    load_model: failed to load model, '{state.model_path}'")
        return state.switches.exit_on_start
    if not state.model_path.exists():
        log("E", f"gguf_init_from_file: failed to open GGUF file '{state.model_path}'")
        return 1
    # Written, or the kernel would not give it.
    state.memory = b"\x01" * (state.switches.takes_mib * 2**20)
    return asyncio.run(serve(state))


if __name__ == "__main__":
    sys.exit(main())
