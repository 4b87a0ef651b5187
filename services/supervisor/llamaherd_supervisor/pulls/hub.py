"""HTTP to where models come from: a hub with Hugging Face's API, or any server that has one file.

Importing this module costs 130 ms and 10 MB (httpx): only a pull does it, in a thread.
"""

import contextlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from llamaherd_shared import __version__
from llamaherd_shared.addresses import is_loopback
from llamaherd_shared.errors import HerdError, NotFound, Rejected, Unavailable
from llamaherd_supervisor.pulls.pace import parse_retry_after
from llamaherd_supervisor.pulls.repository import HubFile

_MAX_LISTING_BYTES: Final = 32 * 2**20
_RANGE: Final = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
"""RFC 9110, 14.4."""


class Broken(Unavailable):
    """The connection broke or the server is busy: asking again may help, after `retry_after_s` if it says so."""


class BeyondEnd(HerdError):
    """The server has no bytes from there on (416)."""

    def __init__(self, total_bytes: int | None) -> None:
        super().__init__("the server has less than is here already")
        self.total_bytes = total_bytes


class Listing(msgspec.Struct, frozen=True):
    """A repository at one revision."""

    commit: str
    files: list[HubFile]


@dataclass(frozen=True)
class Body:
    """An answer that is coming in."""

    offset: int
    """Where in the file it begins: 0 when the server does not continue."""
    total_bytes: int | None
    """Size of the whole file; `None` when the server does not say."""
    chunks: AsyncIterator[bytes]


class _Lfs(msgspec.Struct):
    sha256: str = ""
    size: int | None = None


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None
    lfs: _Lfs | None = None


class _Info(msgspec.Struct):
    """`GET /api/models/<repository>/revision/<revision>?blobs=true`."""

    sha: str = ""
    siblings: list[_Sibling] = []


_INFO: Final = msgspec.json.Decoder(_Info)


class Hub:
    """One client for one pull. Redirects are followed; the token goes to the first server only."""

    def __init__(self, url: str, *, token: str, timeout_s: float) -> None:
        """`timeout_s`: how long nothing may come before the connection counts as broken."""
        self.url = url.rstrip("/")
        # The proxies that the environment names lead out of this machine.
        local = is_loopback(urlsplit(url).hostname or "")
        headers = {"User-Agent": f"llamaherd/{__version__}", "Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.AsyncClient(
            headers=headers,
            follow_redirects=True,
            max_redirects=5,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            trust_env=not local,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def list_files(self, repository: str, revision: str) -> Listing:
        """All files of a repository. Raises why not; `Broken` when asking again may help."""
        url = f"{self.url}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
        async with self._answer(url, {}, what=f"repository {repository} at {revision}") as response:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MAX_LISTING_BYTES:
                    raise Rejected(f"the list of files of {repository} is longer than {_MAX_LISTING_BYTES:,} bytes")
        try:
            info = _INFO.decode(bytes(body))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Rejected(f"{self.url} does not answer like a hub ({error}): is `hub_url` right?") from error
        return Listing(info.sha or revision, [_hub_file(sibling) for sibling in info.siblings])

    @contextlib.asynccontextmanager
    async def download(self, url: str, *, offset: int) -> AsyncIterator[Body]:
        """A file from an offset on. Raises why not; `Broken`, also while it comes in, when asking again may help."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._answer(url, headers, what=urlsplit(url).path.rpartition("/")[2]) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise Rejected(f"{_host(url)} sends the file in an encoding that nobody asked for")
            begin, total = _extent(response)
            if begin not in (0, offset):
                raise Broken(f"{_host(url)} sends the file from byte {begin:,} instead of {offset:,}")
            yield Body(begin, total, response.aiter_raw())

    @contextlib.asynccontextmanager
    async def _answer(self, url: str, headers: dict[str, str], *, what: str) -> AsyncIterator[httpx.Response]:
        try:
            async with self._http.stream("GET", url, headers=headers) as response:
                if response.status_code not in (200, 206):
                    raise _refusal(response, what)
                yield response
        except httpx.InvalidURL as error:
            raise Rejected(f"the address of {what} cannot be read: {error}") from error
        except httpx.TooManyRedirects as error:
            raise Rejected(f"{_host(url)} redirects in a circle") from error
        except httpx.TimeoutException as error:
            raise Broken(f"{_host(url)} has sent nothing for too long") from error
        except httpx.ConnectError as error:
            raise Broken(f"{_host(url)} cannot be reached: {error}") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise Broken(f"the connection to {_host(url)} broke: {str(error) or type(error).__name__}") from error


def _hub_file(sibling: _Sibling) -> HubFile:
    lfs = sibling.lfs or _Lfs()
    return HubFile(name=sibling.rfilename, size_bytes=lfs.size or sibling.size or 0, sha256=lfs.sha256)


def _extent(response: httpx.Response) -> tuple[int, int | None]:
    """(first byte, size of the whole file) of an answer."""
    if response.status_code == 206:
        found = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if found is None or found[1] is None:
            raise Rejected(f"{_host(str(response.url))} sends a part of the file and does not say which")
        return int(found[1]), int(found[2]) if found[2] != "*" else None
    length = response.headers.get("content-length", "")
    return 0, int(length) if length.isdecimal() else None


def _refusal(response: httpx.Response, what: str) -> HerdError:
    """Why there is no answer. The body is not read: a hub's is a page, a proxy's is its own."""
    host, status = _host(str(response.url)), response.status_code
    if status == 416:
        found = _RANGE.fullmatch(response.headers.get("content-range", ""))
        return BeyondEnd(int(found[2]) if found and found[2].isdecimal() else None)
    if status in (401, 403):
        return Rejected(
            f"{host} refuses access to {what} ({status}): it does not exist, or it needs a token that may read it"
            " (`hub_token`), and some repositories want their conditions accepted on their page first"
        )
    if status in (404, 410):
        return NotFound(f"{host} has no {what}")
    if status in (408, 425, 429) or status >= 500:
        after_s = parse_retry_after(response.headers.get("retry-after", ""), now_s=time.time())
        reason = "asks to come back later" if status == 429 else "cannot answer now"
        return Broken(f"{host} {reason} ({status})", retry_after_s=after_s)
    return Rejected(f"{host} answers {status} {response.reason_phrase} for {what}")


def _host(url: str) -> str:
    """What of an address may be shown."""
    return urlsplit(url).hostname or "the server"
