"""Routes that do something to the herd: load and unload, pull, create, copy, delete. They ask others, then answer."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache, partial
from typing import Final, Literal

import msgspec

from llamaherd_gateway.actions import Actions, Wishes
from llamaherd_gateway.blobs import Blobs, read_file
from llamaherd_gateway.dialects import ollama
from llamaherd_gateway.dialects.dialect import JSON, LINES, Dialect, PageRequest, Reply
from llamaherd_gateway.dialects.lmstudio import LMSTUDIO
from llamaherd_gateway.dialects.lmstudio import downloads as lmstudio_downloads
from llamaherd_gateway.dialects.lmstudio import residency as lmstudio_residency
from llamaherd_gateway.dialects.ollama import OLLAMA
from llamaherd_gateway.dialects.openai import OPENAI
from llamaherd_gateway.problems import BadRequest
from llamaherd_gateway.projection import Pull
from llamaherd_gateway.routing.presets import preset_of
from llamaherd_gateway.transfers import Transfers
from llamaherd_shared.commands import PullModel
from llamaherd_shared.errors import NotFound

BYTES: Final = "application/octet-stream"


class Streaming(msgspec.Struct, frozen=True):
    """An answer that comes record by record."""

    records: AsyncIterator[bytes]
    """May raise `HerdError`: before the first record it becomes the answer, after it the last record."""
    content_type: str
    length: int | None = None
    """Bytes, where known beforehand."""
    outlasts_client: bool = False
    """Whether what is done goes on when the client has left."""


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """One route that asks somebody else before it answers."""

    method: str
    path: str
    dialect: Dialect
    answer: Callable[[PageRequest, AsyncIterator[bytes]], Awaitable[Reply | Streaming]]
    """The second argument is the body as it comes, unless `takes_body`. Raises `HerdError`."""
    takes_body: bool = True
    """Whether the whole body stands in the request."""
    manages: bool = True
    """Whether it changes what all users share: a key that is limited to some models may not."""
    public: bool = False
    """Whether it needs no key: it tells nothing, or has a secret of its own."""
    outlasts_client: bool = True
    """Whether it is done to its end for a client that has left."""
    shape: type[msgspec.Struct] | None = None
    """Of the JSON body; `None`: it has none."""
    needs: tuple[str, ...] = ()
    """Fields of the body without which it is refused."""
    takes: str = JSON
    """Content type of the body."""
    gives: tuple[str, ...] = (JSON,)
    """Content types of a good answer; none: it has no body."""
    answers: tuple[int, ...] = (200,)
    """Statuses of a good answer; none: it is always refused."""
    about: str = ""
    example: str = ""
    """As in `dialect.Route`; `DIGEST` stands for that of the demo model's file, `JOB_ID` for one that was answered."""
    example_status: int = 200


GATEWAY: Final = msgspec.structs.replace(OPENAI, name="gateway")
"""No dialect: whoever has a key may use its routes."""

Body = AsyncIterator[bytes]

_CRIA: Final = '{"model": "cria"}'
_PULL: Final = '{"model": "hf.co/ggml-org/gemma-3-270m-it-GGUF:Q8_0"}'
_CREATE: Final = '{"model": "twin", "files": {"twin.gguf": "sha256:DIGEST"}}'
_COPY: Final = '{"source": "cria", "destination": "assistant"}'
_DELETE: Final = '{"model": "assistant"}'
_BLOB: Final = "/api/blobs/sha256:DIGEST"
_SEND: Final = f"{_BLOB} --data-binary @llamaherd/llamaherd/demo/cria.gguf"
_FETCH: Final = "/internal/blobs/sha256:DIGEST -H 'authorization: Bearer TICKET'"
_UNLOAD: Final = '{"instance_id": "cria"}'
_DOWNLOAD: Final = '{"model": "ggml-org/gemma-3-270m-it-GGUF", "quantization": "Q8_0"}'
_STATUS: Final = "/api/v1/models/download/status/JOB_ID"
_PIRATE: Final = "/v1/models/pirate"

_STATES: Final[dict[str, Literal["downloading", "completed", "failed"]]] = {
    "running": "downloading",
    "finished": "completed",
    "failed": "failed",
}
"""Of a pull -> of a download."""


class OllamaHandlers:
    """Ollama's management of models (reference: api-dialects, 5.8 and 5.9)."""

    def __init__(self, actions: Actions, blobs: Blobs, transfers: Transfers) -> None:
        self._actions, self._blobs, self._transfers = actions, blobs, transfers

    def table(self) -> tuple[Handler, ...]:
        blob, give = "/api/blobs/{digest}", "/internal/blobs/{digest}"
        return (
            _handler(
                "GET", "/", self.home, "Says that something is here", public=True, manages=False, gives=("text/plain",)
            ),
            _handler(
                "POST",
                "/api/show",
                self.show,
                "One model in all detail",
                _CRIA,
                manages=False,
                shape=ollama.ShowBody,
                needs=("model",),
            ),
            _handler(
                "POST",
                "/api/pull",
                self.pull,
                "Get a GGUF from Hugging Face, with progress",
                _PULL,
                outlasts_client=False,
                shape=ollama.PullBody,
                needs=("model",),
                gives=(JSON, LINES),
            ),
            _handler(
                "POST",
                "/api/create",
                self.create,
                "A model from another one, or from a file that was sent",
                _CREATE,
                shape=ollama.CreateBody,
                needs=("model",),
                gives=(JSON, LINES),
            ),
            _handler(
                "POST",
                "/api/copy",
                self.copy,
                "Another name for a model",
                _COPY,
                shape=ollama.CopyBody,
                needs=("source", "destination"),
                gives=(),
            ),
            _handler(
                "DELETE",
                "/api/delete",
                self.delete,
                "Delete a model's files, or a name made by copying",
                _DELETE,
                shape=ollama.DeleteBody,
                needs=("model",),
                gives=(),
            ),
            _handler("HEAD", blob, self.has_blob, "Whether a file was sent", _BLOB, gives=(), example_status=404),
            _handler(
                "POST",
                blob,
                self.take_blob,
                "Send a file to make a model of",
                _SEND,
                takes_body=False,
                takes=BYTES,
                gives=(),
                answers=(200, 201),
                example_status=201,
            ),
            _handler(
                "GET",
                give,
                self.give_blob,
                "Such a file, for the supervisor that was given a ticket",
                _FETCH,
                dialect=GATEWAY,
                public=True,
                manages=False,
                gives=(BYTES,),
                example_status=404,
            ),
        )

    async def home(self, request: PageRequest, body: Body) -> Reply:
        return ollama.RUNNING

    async def show(self, request: PageRequest, body: Body) -> Reply:
        asked, verbose = ollama.read_show(request.body)
        await self._actions.settled()
        card = self._actions.card(asked)
        alias = self._actions.alias(asked)
        description = await self._actions.describe(card, verbose=verbose)
        shown = ollama.render_show(
            card,
            description,
            verbose=verbose,
            asked=asked,
            user_agent=request.headers.get("user-agent", ""),
            preset=preset_of(alias) if alias is not None else None,
        )
        return Reply(body=shown)

    async def pull(self, request: PageRequest, body: Body) -> Reply | Streaming:
        wanted = ollama.read_pull(request.body)
        await self._actions.settled()
        return await _streamed(self._transfers.pull(wanted), stream=wanted.stream)

    async def create(self, request: PageRequest, body: Body) -> Reply | Streaming:
        wanted = ollama.read_create(request.body)
        await self._actions.settled()
        return await _streamed(self._transfers.create(wanted), stream=wanted.stream, outlasts_client=True)

    async def copy(self, request: PageRequest, body: Body) -> Reply:
        wanted = ollama.read_copy(request.body)
        await self._actions.settled()
        if self._actions.model_called(wanted.source) is None:
            raise ollama.no_source(wanted.source)
        if self._actions.spell(wanted.source) != self._actions.spell(wanted.destination):
            await self._actions.name(wanted.destination, wanted.source, Wishes())
        return Reply(body=b"")

    async def delete(self, request: PageRequest, body: Body) -> Reply:
        wanted = ollama.read_delete(request.body)
        await self._actions.settled()
        await self._actions.delete(wanted.model)
        return Reply(body=b"")

    async def has_blob(self, request: PageRequest, body: Body) -> Reply:
        digest = request.parameters["digest"]
        found = self._blobs.find(digest) is not None or self._is_a_model(digest)
        return Reply(body=b"", status=200 if found else 404)

    async def take_blob(self, request: PageRequest, body: Body) -> Reply:
        digest = request.parameters["digest"]
        stored = await self._blobs.store(digest, body, known=self._is_a_model(digest))
        return Reply(body=b"", status=201 if stored else 200)

    def _is_a_model(self, digest: str) -> bool:
        """Whether a model has this content: nothing has to be sent."""
        return self._actions.model_of_content(self._blobs.hex_of(digest)) is not None

    async def give_blob(self, request: PageRequest, body: Body) -> Reply | Streaming:
        secret = request.headers.get("authorization", "").removeprefix("Bearer ")
        path = self._blobs.admit(request.parameters["digest"], secret)
        return Streaming(read_file(path), BYTES, path.stat().st_size)


class LmStudioHandlers:
    """LM Studio's load, unload and download (reference: api-dialects, 6.1 and 6.5)."""

    def __init__(self, actions: Actions, transfers: Transfers) -> None:
        self._actions, self._transfers = actions, transfers

    def table(self) -> tuple[Handler, ...]:
        at = "/api/v1/models"
        status = f"{at}/download/status/{{job_id}}"
        return (
            _lmstudio(
                "POST",
                f"{at}/load",
                self.load,
                "Load a model and wait for it",
                _CRIA,
                outlasts_client=False,
                shape=lmstudio_residency.LoadRequest,
                needs=("model",),
            ),
            _lmstudio(
                "POST",
                f"{at}/unload",
                self.unload,
                "Unload an instance of a model",
                _UNLOAD,
                shape=lmstudio_residency.UnloadRequest,
                needs=("instance_id",),
            ),
            _lmstudio(
                "POST",
                f"{at}/download",
                self.download,
                "Begin to get a GGUF from Hugging Face",
                _DOWNLOAD,
                shape=lmstudio_downloads.DownloadBody,
                needs=("model",),
            ),
            _lmstudio("GET", status, self.status, "How far a download is", _STATUS, manages=False),
        )

    async def load(self, request: PageRequest, body: Body) -> Reply:
        wanted = lmstudio_residency.read_load(request.body)
        await self._actions.settled()
        model = self._actions.card(wanted.model).model
        since = time.monotonic_ns()
        loaded = await self._actions.load(model, wanted.options)
        took_ns = time.monotonic_ns() - since
        card = self._actions.card(wanted.model)
        return Reply(body=lmstudio_residency.render_loaded(card, loaded, wanted, load_ns=took_ns))

    async def unload(self, request: PageRequest, body: Body) -> Reply:
        wanted = lmstudio_residency.read_unload(request.body)
        await self._actions.settled()
        model, instances = lmstudio_residency.find_instances(self._actions.herd(), wanted)
        await self._actions.unload(model, nodes={loaded.node for loaded in instances})
        return Reply(body=lmstudio_residency.render_unloaded(wanted))

    async def download(self, request: PageRequest, body: Body) -> Reply:
        wanted = lmstudio_downloads.read_download(request.body)
        await self._actions.settled()
        command = PullModel(repository=wanted.repository, quantization=wanted.quantization)
        try:
            accepted = await self._actions.start_pull(command)
        except NotFound as error:
            raise BadRequest(error.message, status=404, code="model_not_found", param="model") from error
        await self._transfers.name_pulled(wanted.key, accepted)
        download = lmstudio_downloads.Download(
            job_id=accepted.pull,
            status="already_downloaded" if accepted.present else "downloading",
            total_bytes=accepted.total_bytes or None,
            downloaded_bytes=accepted.done_bytes,
            started_ns=time.time_ns(),
        )
        return Reply(body=lmstudio_downloads.render_download(download))

    async def status(self, request: PageRequest, body: Body) -> Reply:
        job_id = request.parameters["job_id"]
        await self._actions.settled()
        pull = self._actions.view.fleet.pulls.get(job_id)
        if pull is None:
            raise lmstudio_downloads.unknown_job(job_id)
        return Reply(body=lmstudio_downloads.render_download_status(_download(pull), now_ns=time.time_ns()))


class OpenAiHandlers:
    """The one thing OpenAI's clients can change."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def table(self) -> tuple[Handler, ...]:
        path, about = "/v1/models/{id*}", "Delete a model's files, or a name made for it"
        return (_handler("DELETE", path, self.delete, about, _PIRATE, dialect=OPENAI, takes_body=False),)

    async def delete(self, request: PageRequest, body: Body) -> Reply:
        name = request.parameters["id"]
        await self._actions.settled()
        await self._actions.delete(name)
        return Reply(body=msgspec.json.encode({"id": name, "object": "model", "deleted": True}))


class OwnHandlers:
    """What belongs to no dialect."""

    def __init__(self, render_document: Callable[[], bytes]) -> None:
        self._render_document = cache(render_document)

    def table(self) -> tuple[Handler, ...]:
        about = "This API, as OpenAPI 3.1"
        return (_handler("GET", "/openapi.json", self.document, about, dialect=GATEWAY, manages=False),)

    async def document(self, request: PageRequest, body: Body) -> Reply:
        return Reply(body=self._render_document())


def _download(pull: Pull) -> lmstudio_downloads.Download:
    return lmstudio_downloads.Download(
        job_id=pull.pull,
        status=_STATES[pull.state],
        total_bytes=pull.total_bytes or None,
        downloaded_bytes=pull.done_bytes,
        bytes_per_s=pull.bytes_per_s,
        started_ns=pull.started_ns,
        completed_ns=pull.at_ns if pull.state == "finished" else None,
    )


def _handler(
    method: str,
    path: str,
    answer: Callable[[PageRequest, Body], Awaitable[Reply | Streaming]],
    about: str,
    example: str = "",
    *,
    dialect: Dialect = OLLAMA,
    takes_body: bool = True,
    manages: bool = True,
    public: bool = False,
    outlasts_client: bool = True,
    shape: type[msgspec.Struct] | None = None,
    needs: tuple[str, ...] = (),
    takes: str = JSON,
    gives: tuple[str, ...] = (JSON,),
    answers: tuple[int, ...] = (200,),
    example_status: int = 200,
) -> Handler:
    return Handler(
        method=method,
        path=path,
        dialect=dialect,
        answer=answer,
        takes_body=takes_body,
        manages=manages,
        public=public,
        outlasts_client=outlasts_client,
        shape=shape,
        needs=needs,
        takes=takes,
        gives=gives,
        answers=answers,
        about=about,
        example=example,
        example_status=example_status,
    )


_lmstudio: Final = partial(_handler, dialect=LMSTUDIO)


async def _streamed(records: AsyncIterator[bytes], *, stream: bool, outlasts_client: bool = False) -> Reply | Streaming:
    """Ollama's choice: every record, or only the last."""
    if stream:
        return Streaming(records, LINES, outlasts_client=outlasts_client)
    *_, last = [record async for record in records]
    return Reply(body=last.rstrip(b"\n"))
