"""A stand-in for a model hub: Hugging Face's two routes over real HTTP, misbehaving on request. Standard library only.

`GET /api/models/<repository>/revision/<revision>` lists files, `GET /<repository>/resolve/<commit>/<file>` redirects to
`/cdn/...` under another name of this machine, as the hub does, and that serves the bytes with `Range`. A plain file is
under `/files/<name>`.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee"


@dataclass
class Switches:
    """How it misbehaves. Lists are used up from their front, one entry per answer."""

    break_after: list[int] = field(default_factory=list)
    """Close the connection after so many bytes of a file."""
    refuse: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """(status, headers) instead of a file."""
    refuse_listing: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    hold_after: int | None = None
    """Send so many bytes of a file, then nothing until `go_on`."""
    token: str = ""
    """Ask for this bearer token on the hub's own routes."""
    announced_size: int | None = None
    """Size in the list of files, instead of the real one."""
    announced_sha256: str | None = None
    ignore_range: bool = False
    """Always send the whole file."""
    no_length: bool = False
    """Send files chunked, without their length."""
    extra: bytes = b""
    """Sent behind the file, in a chunked answer."""


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    path: str
    host: str
    range: str
    authorization: str


class FakeHub:
    """Runs in threads of this process while it is open."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        """By repository and path; plain files under the repository `""`."""
        self.switches = Switches()
        self.seen: list[Seen] = []
        self.go_on = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def downloads(self) -> list[Seen]:
        """Requests for the bytes of files."""
        return [seen for seen in self.seen if seen.path.startswith(("/cdn/", "/files/"))]

    def listing(self, repository: str) -> dict[str, Any]:
        """As `GET /api/models/...?blobs=true` has it; what is no GGUF is kept without LFS."""
        siblings = []
        for path, data in self.files[repository].items():
            size = len(data) if self.switches.announced_size is None else self.switches.announced_size
            sha256 = self.switches.announced_sha256 or hashlib.sha256(data).hexdigest()
            sibling: dict[str, Any] = {"rfilename": path, "size": size, "blobId": "b10b"}
            if path.endswith(".gguf"):
                sibling["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 135}
            siblings.append(sibling)
        return {"id": repository, "sha": COMMIT, "gated": False, "siblings": siblings}


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            headers = self.headers
            hub.seen.append(
                Seen(path, headers.get("Host", ""), headers.get("Range", ""), headers.get("Authorization", ""))
            )
            if path.startswith("/cdn/"):
                _, _, owner, name, file = path.split("/", 4)
                self._send_file(hub.files.get(f"{owner}/{name}", {}).get(file))
            elif path.startswith("/files/"):
                self._send_plain(path.removeprefix("/files/"))
            elif hub.switches.token and headers.get("Authorization") != f"Bearer {hub.switches.token}":
                self._answer(401)
            elif path.startswith("/api/models/"):
                self._send_listing(path.removeprefix("/api/models/").split("/revision/")[0])
            elif "/resolve/" in path:
                repository, _, rest = path.removeprefix("/").partition("/resolve/")
                file = rest.partition("/")[2]
                # Another host name: what is meant for the hub is not meant for where it keeps its files.
                self._answer(302, {"Location": f"http://localhost:{hub.port}/cdn/{repository}/{file}?signature=s3cr3t"})
            else:
                self._answer(404)

        def _send_listing(self, repository: str) -> None:
            if hub.switches.refuse_listing:
                self._answer(*hub.switches.refuse_listing.pop(0))
            elif repository in hub.files:
                self._answer(200, {"Content-Type": "application/json"}, json.dumps(hub.listing(repository)).encode())
            else:
                self._answer(404)

        def _send_plain(self, name: str) -> None:
            if hub.switches.token and self.headers.get("Authorization") != f"Bearer {hub.switches.token}":
                self._answer(401)
            else:
                self._send_file(hub.files.get("", {}).get(name))

        def _send_file(self, data: bytes | None) -> None:
            switches = hub.switches
            if switches.refuse:
                self._answer(*switches.refuse.pop(0))
                return
            if data is None:
                self._answer(404)
                return
            offset = 0
            if (asked := self.headers.get("Range", "")) and not switches.ignore_range:
                offset = int(asked.removeprefix("bytes=").partition("-")[0])
                if offset >= len(data):
                    self._answer(416, {"Content-Range": f"bytes */{len(data)}"})
                    return
            self.send_response(206 if offset else 200)
            if offset:
                self.send_header("Content-Range", f"bytes {offset}-{len(data) - 1}/{len(data)}")
            if switches.no_length:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(data) - offset))
            self.end_headers()
            self._send_body(data[offset:])

        def _send_body(self, body: bytes) -> None:
            switches = hub.switches
            limit = switches.break_after.pop(0) if switches.break_after else None
            held = switches.hold_after
            if held is not None:
                self._write(body[:held])
                hub.go_on.wait()
                body = body[held:]
            self._write(body if limit is None else body[:limit])
            if limit is not None and limit < len(body):
                self.close_connection = True
                return
            if switches.no_length:
                self._write(switches.extra)
                self.wfile.write(b"0\r\n\r\n")

        def _write(self, data: bytes) -> None:
            if data and hub.switches.no_length:
                data = f"{len(data):x}\r\n".encode() + data + b"\r\n"
            self.wfile.write(data)
            self.wfile.flush()

        def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle(self) -> None:
            # The other side may leave at any moment.
            try:
                super().handle()
            except OSError:
                self.close_connection = True

    return Handler
