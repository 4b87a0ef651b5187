"""Questions to ports: who has them, who answers there."""

import asyncio
import base64
import contextlib
import errno
import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import nkeys
import psutil

from llamaherd.failures import Misused
from llamaherd.permissions import ADMIN, inbox_prefix
from llamaherd_shared.errors import Unavailable

PROBE_S: Final = 0.02
"""Between two probes of something that is starting."""


def check_port_free(host: str, port: int, *, what: str, option: str) -> None:
    """Raises `Misused` with who holds the port and the option that changes ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Misused(
                    f"port {port} on {host}, where {what} should listen, is taken by {holder_of(port)}; "
                    f"stop that or choose another port with {option}"
                ) from error
            remedy = f"choose another port with {option}" if error.errno == errno.EACCES else "change it with --host"
            raise Misused(f"{what} cannot listen on {host}:{port}: {error.strerror}; {remedy}") from error


def holder_of(port: int) -> str:
    """`name (process 123)`, or `another program` when the system does not tell."""
    with contextlib.suppress(psutil.Error, OSError):
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid:
                return f"{psutil.Process(found.pid).name()} (process {found.pid})"
    return "another program"


def pick_port(preferred: int) -> int:
    """The preferred loopback port if it is free, else a random free one."""
    for port in (preferred, 0):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            chosen: int = listener.getsockname()[1]
            return chosen
    raise Unavailable("no free port on 127.0.0.1")


async def wait_for_jetstream(port: int, seed_file: Path, *, timeout_s: float, tick: Callable[[], None]) -> str:
    """Wait until the embedded server lets us in and JetStream answers; returns the server's version.

    `tick` is called before every probe.
    """
    deadline = time.monotonic() + timeout_s
    trouble = "it does not accept connections"
    while time.monotonic() < deadline:
        tick()
        try:
            return await asyncio.wait_for(_ask_jetstream(port, seed_file.read_bytes().strip()), 2)
        except (OSError, EOFError, TimeoutError, Unavailable) as error:
            trouble = str(error) or trouble
        await asyncio.sleep(PROBE_S)
    raise Unavailable(f"nats-server was not ready within {timeout_s:g} s: {trouble}")


async def _ask_jetstream(port: int, seed: bytes) -> str:
    """One conversation in the NATS client protocol: sign in with the nkey, then `$JS.API.INFO`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        info = json.loads((await reader.readline()).removeprefix(b"INFO "))
        pair = nkeys.from_seed(seed)
        hello = {
            "nkey": pair.public_key.decode(),
            "sig": _base64url(pair.sign(info["nonce"].encode())),
            "verbose": False,
            "pedantic": False,
            "lang": "llamaherd",
            "version": "0",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
        }
        inbox = f"{inbox_prefix(ADMIN)}.ready"
        writer.write(
            b"CONNECT "
            + json.dumps(hello).encode()
            + f"\r\nSUB {inbox} 1\r\nPUB $JS.API.INFO {inbox} 0\r\n\r\n".encode()
        )
        while line := await reader.readline():
            if line.startswith(b"-ERR"):
                raise Unavailable(f"it refuses us: {line[4:].decode().strip()}")
            if line.startswith(b"HMSG"):
                raise Unavailable("JetStream does not answer yet")
            if line.startswith(b"MSG"):
                return str(info["version"])
        raise Unavailable("it closed the connection")
    finally:
        writer.close()


async def wait_for_nats(url: str, *, timeout_s: float) -> None:
    """Wait until something that speaks the NATS protocol answers at one of the addresses in `url`."""
    deadline = time.monotonic() + timeout_s
    while True:
        for host, port in _addresses(url):
            with contextlib.suppress(OSError, TimeoutError):
                reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 2)
                greeting = await asyncio.wait_for(reader.readline(), 2)
                writer.close()
                if greeting.startswith(b"INFO "):
                    return
        if time.monotonic() > deadline:
            raise Unavailable(f"no nats-server answers at {url}; start it, or leave --nats-url out to run our own")
        await asyncio.sleep(0.2)


def _addresses(url: str) -> list[tuple[str, int]]:
    found = []
    for part in url.split(","):
        match = re.fullmatch(r"(?:\w+://)?(?:[^@/]*@)?(\[[^\]]+\]|[^:/\[\s]+)(?::(\d+))?/?", part.strip())
        if match is None:
            raise Misused(f"`{part.strip()}` is not the address of a nats-server; write nats://HOST:4222 (--nats-url)")
        found.append((match[1].strip("[]"), int(match[2] or 4222)))
    return found


async def ask_json(method: str, url: str, *, timeout_s: float = 5.0) -> tuple[int, Any]:
    """Status and body of a small request; (0, None) when nobody answers. Without a HTTP library: `up` is waiting."""
    match = re.fullmatch(r"http://(\[[^\]]+\]|[^:/]+):(\d+)(/.*)", url)
    assert match is not None, url
    host, port, path = match[1].strip("[]"), int(match[2]), match[3]
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                # HTTP/1.0: the answer ends with the connection and is never chunked.
                head = f"{method} {path} HTTP/1.0\r\nHost: {match[1]}:{port}\r\nContent-Length: 0\r\n\r\n"
                writer.write(head.encode())
                answer = await reader.read(-1)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return 0, None
    start, _, body = answer.partition(b"\r\n\r\n")
    try:
        return int(start.split(b" ", 2)[1]), json.loads(body) if body else None
    except (ValueError, IndexError):
        return 0, None


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
