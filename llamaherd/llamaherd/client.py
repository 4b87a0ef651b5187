"""The herd over HTTP: the ui's REST API and the gateway. Every call either answers or raises a `HerdError`."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from llamaherd.failures import Unreachable
from llamaherd.fleet import ApiKey, CreatedKey, Fleet, Model
from llamaherd.sse import ServerSent, parse_events
from llamaherd_shared.commands import (
    HELP_TIMEOUT_S,
    LISTING_TIMEOUT_S,
    Accepted,
    Lines,
    ModelReset,
    NodeDrainState,
    Parameters,
    PullAccepted,
    Reloaded,
)
from llamaherd_shared.errors import KINDS, HerdError, NotFound, Rejected, Unavailable

T = TypeVar("T")

DEFAULT_URL: Final = "http://127.0.0.1:8081"
DEFAULT_GATEWAY_URL: Final = "http://127.0.0.1:8080"
TIMEOUT_S: Final = 10.0
"""For answers that are not streams; loading a model answers at once."""
QUIET_S: Final = 40.0
"""A live stream that is silent longer is dead: the ui sends a comment every 15 s."""
RETRY_S: Final = 1.0


class Client:
    """The ui at one address."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> bytes:
        """The body of `GET /api/v1<path>`; parameters that are `None` are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._send("GET", path, params=given)

    def fleet(self) -> Fleet:
        return _decode(self.get("/fleet"), Fleet)

    def models(self) -> list[Model]:
        return _decode(self.get("/models"), list[Model])

    def load(self, model: str, *, node: str | None = None, options: Mapping[str, Any] | None = None) -> Accepted:
        """`options`: as `POST /api/v1/models/.../load` takes them."""
        return self._command(model, "load", node, json=options or None)

    def unload(self, model: str, *, node: str | None = None) -> Accepted:
        return self._command(model, "unload", node)

    def reset(self, model: str, *, node: str | None = None) -> ModelReset:
        query = {"node": node} if node else {}
        return _decode(self._send("POST", f"/models/{quote(model, safe='')}/reset", params=query), ModelReset)

    def drain(self, node: str) -> NodeDrainState:
        return _decode(self._send("POST", f"/nodes/{quote(node, safe='')}/drain"), NodeDrainState)

    def resume(self, node: str) -> NodeDrainState:
        return _decode(self._send("POST", f"/nodes/{quote(node, safe='')}/resume"), NodeDrainState)

    def pull(self, asked: Mapping[str, Any]) -> PullAccepted:
        """Begin to pull a model; `asked` as `POST /api/v1/models/pull` takes it. The hub is asked before the answer."""
        return _decode(self._send("POST", "/models/pull", json=asked, timeout_s=LISTING_TIMEOUT_S + 5), PullAccepted)

    def cancel_pull(self, pull: str, *, node: str) -> None:
        self._send("POST", f"/models/pull/{quote(pull, safe='')}/cancel", params={"node": node})

    def parameters(self, *, category: str | None, search: str | None, node: str | None) -> Parameters:
        query = {"category": category, "search": search, "node": node}
        given = {name: value for name, value in query.items() if value is not None}
        return _decode(self._send("GET", "/parameters", params=given, timeout_s=HELP_TIMEOUT_S + 5), Parameters)

    def reload(self, *, dry_run: bool, text: str | None) -> list[Reloaded]:
        """Have every supervisor read its llamaherd.yaml; `text`: what the file would say."""
        asked = {"dry_run": dry_run, "text": text}
        return _decode(self._send("POST", "/configuration/reload", json=asked, timeout_s=20.0), list[Reloaded])

    def keys(self) -> list[ApiKey]:
        return _decode(self.get("/keys"), list[ApiKey])

    def create_key(self, asked: Mapping[str, Any]) -> CreatedKey:
        """Make an API key; `asked` as `POST /api/v1/keys` takes it."""
        return _decode(self._send("POST", "/keys", json=asked), CreatedKey)

    def revoke_key(self, key_id: str) -> ApiKey:
        return _decode(self._send("DELETE", f"/keys/{quote(key_id, safe='')}"), ApiKey)

    def lines(self, **query: Any) -> Lines:
        return _decode(self.get("/logs", **query), Lines)

    def events(self, *, after: int, limit: int) -> tuple[list[dict[str, Any]], int | None]:
        """Facts after a sequence, oldest first, and the `after` of the next page."""
        page = _decode(self.get("/events", after=after, limit=limit), dict[str, Any])
        return page["events"], page["next"]

    def stream(self, *, topics: str, after: str) -> Iterator[ServerSent]:
        """What happens after a position, across reconnections; endless but for a refusal."""
        while True:
            try:
                for event in self._stream_once(topics, after):
                    after = event.id or after
                    yield event
            except (httpx.HTTPError, Unreachable):
                pass
            time.sleep(RETRY_S)

    def _stream_once(self, topics: str, after: str) -> Iterator[ServerSent]:
        timeout = httpx.Timeout(TIMEOUT_S, read=QUIET_S)
        query = {"topics": topics, "after": after}
        with self._http.stream("GET", "/api/v1/stream", params=query, timeout=timeout) as response:
            if response.status_code >= 400:
                response.read()
                raise _error_of(response)
            yield from parse_events(response.iter_lines())

    def _command(self, model: str, verb: str, node: str | None, *, json: Any = None) -> Accepted:
        query = {"node": node} if node else {}
        body = self._send("POST", f"/models/{quote(model, safe='')}/{verb}", params=query, json=json)
        return _decode(body, Accepted)

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        timeout_s: float = TIMEOUT_S,
    ) -> bytes:
        with _reaching(self.url):
            response = self._http.request(method, f"/api/v1{path}", params=params, json=json, timeout=timeout_s)
        if response.status_code >= 400:
            raise _error_of(response)
        return response.content


class Gateway:
    """The gateway at one address, as any OpenAI client would use it."""

    def __init__(self, url: str) -> None:
        """With the API key in `LLAMAHERD_API_KEY`, when there is one."""
        self.url = url.rstrip("/").removesuffix("/v1")
        key = os.environ.get("LLAMAHERD_API_KEY")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def chat(self, model: str, messages: list[dict[str, str]], *, max_tokens: int | None = None) -> Iterator[str]:
        """The answer as it is generated. Closing the iterator stops the generation."""
        body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        timeout = httpx.Timeout(TIMEOUT_S, read=None)
        with (
            _reaching(self.url),
            httpx.Client(timeout=timeout, trust_env=False, headers=self._headers) as http,
            http.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response,
        ):
            if response.status_code >= 400:
                response.read()
                raise _error_of(response)
            for event in parse_events(response.iter_lines()):
                if event.data == "[DONE]":
                    return
                chunk = msgspec.json.decode(event.data)
                if "error" in chunk:
                    raise Unavailable(str(chunk["error"].get("message", chunk["error"])))
                for choice in chunk.get("choices", ()):
                    if text := choice.get("delta", {}).get("content"):
                        yield text


def ui_url(option: str | None, recorded: str | None) -> str:
    """Where the ui is: the option, `LLAMAHERD_URL`, the running herd's record, the default; in this order."""
    return option or os.environ.get("LLAMAHERD_URL") or recorded or DEFAULT_URL


def gateway_url(option: str | None, recorded: str | None) -> str:
    """Where the gateway is, found as `ui_url` is."""
    return option or os.environ.get("LLAMAHERD_GATEWAY_URL") or recorded or DEFAULT_GATEWAY_URL


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Unreachable(f"nobody answers at {url}; is the herd running? start one with `llamaherd up`") from error
    except httpx.TimeoutException as error:
        raise Unreachable(f"{url} did not answer in time") from error
    except httpx.InvalidURL as error:
        raise Unreachable(f"{url} is not an address: {error}") from error
    except httpx.TransportError as error:
        raise Unreachable(f"the connection to {url} broke: {error}") from error


def _error_of(response: httpx.Response) -> HerdError:
    """The error that a body in our own or in OpenAI's shape tells about."""
    try:
        error = msgspec.json.decode(response.content)["error"]
        message, kind = str(error["message"]), error.get("kind")
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        message, kind = f"{response.request.url} answered {response.status_code} {response.reason_phrase}", None
    if kind in KINDS:
        return KINDS[kind](message)
    if response.status_code == 404:
        return NotFound(message)
    return Rejected(message) if response.status_code < 500 else Unavailable(message)


def _decode(body: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the ui answered something else than expected ({error}); is it another version?") from error
