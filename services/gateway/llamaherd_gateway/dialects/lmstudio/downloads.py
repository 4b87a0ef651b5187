"""Bodies of `/api/v1/models/download` and `/api/v1/models/download/status/{job_id}` (api-dialects, 6.1)."""

import re
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from llamaherd_gateway.bodies import decode_body, model_of
from llamaherd_gateway.dialects.lmstudio.fields import refuse_unknown_fields
from llamaherd_gateway.problems import BadRequest


class DownloadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: Any = None
    """`publisher/model`, with or without `@quantization`, or the address of a Hugging Face repository."""
    quantization: str | None = None


class DownloadRequest(msgspec.Struct, frozen=True, kw_only=True):
    repository: str
    """`publisher/model`, whichever way it was written."""
    quantization: str = ""
    """e.g. `Q4_K_M`"""

    @property
    def key(self) -> str:
        """What LM Studio calls the model once it is there."""
        return f"{self.repository}@{self.quantization.lower()}" if self.quantization else self.repository


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """A download, as far as clients are told."""

    job_id: str
    status: Literal["downloading", "paused", "completed", "failed", "already_downloaded"]
    total_bytes: int | None = None
    """`None`: not known yet."""
    downloaded_bytes: int = 0
    bytes_per_s: float | None = None
    started_ns: int = 0
    completed_ns: int | None = None


_DECODER: Final = msgspec.json.Decoder(DownloadBody)
_HUB: Final = re.compile(r"^(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/", re.IGNORECASE)


def read_download(body: bytes) -> DownloadRequest:
    """Raises `BadRequest`."""
    refuse_unknown_fields(body, DownloadBody)
    request = decode_body(_DECODER, body)
    name, _, quantization = _HUB.sub("", model_of(request.model).strip()).partition("@")
    return DownloadRequest(repository=name.rstrip("/"), quantization=request.quantization or quantization)


def render_download(download: Download) -> bytes:
    """The answer to the request that begins it."""
    if download.status == "already_downloaded":
        return msgspec.json.encode({"status": download.status})
    return msgspec.json.encode(_describe(download))


def render_download_status(download: Download, *, now_ns: int) -> bytes:
    """How far it is. The end is foretold from the speed it has now."""
    content = {**_describe(download), "downloaded_bytes": download.downloaded_bytes}
    if download.status == "already_downloaded":
        content["status"] = "completed"
    if download.status == "downloading" and download.bytes_per_s is not None:
        content["bytes_per_second"] = download.bytes_per_s
        if download.bytes_per_s > 0 and download.total_bytes is not None:
            left_s = max(0, download.total_bytes - download.downloaded_bytes) / download.bytes_per_s
            content["estimated_completion"] = _iso(now_ns + int(min(left_s, _LONGEST_S) * 1e9))
    return msgspec.json.encode(content)


_LONGEST_S: Final = 366 * 86400.0
"""No end further away than that is foretold: a stalled download would get a date nothing can read."""


def unknown_job(job_id: str) -> BadRequest:
    """To be raised when there is no such download."""
    return BadRequest(f"there is no download {job_id!r}", status=404, code="job_not_found", param="job_id")


def _describe(download: Download) -> dict[str, Any]:
    content: dict[str, Any] = {"job_id": download.job_id, "status": download.status}
    if download.total_bytes is not None:
        content["total_size_bytes"] = download.total_bytes
    content["started_at"] = _iso(download.started_ns)
    if download.status == "completed" and download.completed_ns is not None:
        content["completed_at"] = _iso(download.completed_ns)
    return content


def _iso(at_ns: int) -> str:
    """ISO 8601 in UTC with milliseconds."""
    at = datetime.fromtimestamp(at_ns // 10**9, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ns // 10**6 % 1000:03d}Z"
