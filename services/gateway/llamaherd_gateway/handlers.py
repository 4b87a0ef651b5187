"""Routes that do something to the herd: load and unload, pull, create, copy, delete. They ask others, then answer."""

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec

from llamaherd_gateway.actions import Actions
from llamaherd_gateway.blobs import Blobs, read_file
from llamaherd_gateway.dialects import ollama
from llamaherd_gateway.dialects.dialect import Dialect, Loaded, PageRequest, Reply
from llamaherd_gateway.dialects.lmstudio import LMSTUDIO
from llamaherd_gateway.dialects.lmstudio import downloads as lmstudio_downloads
from llamaherd_gateway.dialects.lmstudio import residency as lmstudio_residency
from llamaherd_gateway.dialects.ollama import OLLAMA
from llamaherd_gateway.dialects.openai import OPENAI
from llamaherd_gateway.problems import BadRequest
from llamaherd_gateway.projection import Pull
from llamaherd_shared.commands import PullAccepted, PullModel
from llamaherd_shared.errors import Unavailable

NDJSON: Final = "application/x-ndjson"
HUBS: Final = re.compile(r"^(?:https?://)?(?:hf\.co|huggingface\.co)/")
"""What stands before a repository in the names that Ollama's clients pull."""


class Streaming(msgspec.Struct, frozen=True):
    """An answer that comes record by record."""

    records: AsyncIterator[bytes]
    """May raise `HerdError`: before the first record it becomes the answer, after it the last record."""
    content_type: str
    length: int | None = None
    """Bytes, where known beforehand."""


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
    about: str = ""
    example: str = ""


Body = AsyncIterator[bytes]


class OllamaHandlers:
    """Ollama's management of models (reference: api-dialects, 5.8 and 5.9)."""

    def __init__(self, actions: Actions, blobs: Blobs, *, address: str) -> None:
        """`address`: where a supervisor reaches this gateway, `http://host:port`."""
        self._actions, self._blobs, self._address = actions, blobs, address

    def table(self) -> tuple[Handler, ...]:
        blob = "/api/blobs/{digest}"
        return (
            _handler("GET", "/", self.home, "Says that something is here", public=True, manages=False),
            _handler("POST", "/api/show", self.show, "One model in all detail", '{"model": "cria"}', manages=False),
            _handler("POST", "/api/pull", self.pull, "Get a GGUF from a Hugging Face repository, with progress"),
            _handler(
                "POST", "/api/create", self.create, "A model from another one, or from a GGUF that was sent before"
            ),
            _handler("POST", "/api/copy", self.copy, "Another name for a model"),
            _handler(
                "DELETE", "/api/delete", self.delete, "Delete a model's files, or a name that was made by copying"
            ),
            _handler("HEAD", blob, self.has_blob, "Whether a file was sent before"),
            _handler("POST", blob, self.take_blob, "Send a file for a model to be made of", takes_body=False),
            _handler("GET", "/internal/blobs/{digest}", self.give_blob, "For supervisors", public=True, manages=False),
        )

    async def home(self, request: PageRequest, body: Body) -> Reply:
        return ollama.RUNNING

    async def show(self, request: PageRequest, body: Body) -> Reply:
        asked, verbose = ollama.read_show(request.body)
        card = self._actions.card(asked)
        alias = self._actions.alias(asked)
        description = await self._actions.describe(card, verbose=verbose)
        shown = ollama.render_show(
            card,
            description,
            verbose=verbose,
            asked=asked,
            user_agent=request.headers.get("user-agent", ""),
            system=alias.system if alias is not None else "",
            parameters=alias.options if alias is not None else None,
        )
        return Reply(body=shown)

    async def pull(self, request: PageRequest, body: Body) -> Reply | Streaming:
        wanted = ollama.read_pull(request.body)
        if "/" not in wanted.model:
            text = f"pull model manifest: {wanted.model!r} names no repository: use hf.co/OWNER/NAME[:QUANTIZATION]"
            raise BadRequest(text, code="no_repository")
        command = PullModel(repository=HUBS.sub("", wanted.model).removesuffix(":latest"))
        return await _streamed(self._pulled(command), stream=wanted.stream)

    async def _pulled(self, command: PullModel) -> AsyncIterator[bytes]:
        yield ollama.render_progress(ollama.PULLING_MANIFEST)
        async for record in self._fetched(await self._actions.start_pull(command)):
            yield record
        yield ollama.render_progress(ollama.REMOVING_UNUSED)
        yield ollama.render_progress(ollama.SUCCESS)

    async def _fetched(self, accepted: PullAccepted) -> AsyncIterator[bytes]:
        """Records of a pull until its model can be asked for. Raises `Unavailable` when it fails."""
        last: Pull | None = None
        async for last in self._actions.follow_pull(accepted):
            digest = last.sha256 or accepted.pull
            if last.total_bytes:
                yield ollama.render_progress(
                    ollama.pulling(digest),
                    digest=f"sha256:{digest}",
                    total=last.total_bytes,
                    completed=last.done_bytes,
                )
        if last is None or last.state == "failed":
            raise Unavailable(last.reason if last is not None else "the pull is not heard of any more")
        yield ollama.render_progress(ollama.VERIFYING)
        yield ollama.render_progress(ollama.WRITING_MANIFEST)
        await self._actions.until_known(last.model)

    async def create(self, request: PageRequest, body: Body) -> Reply | Streaming:
        wanted = ollama.read_create(request.body)
        if wanted.adapters or wanted.quantize or wanted.template:
            text = "`adapters`, `quantize` and `template` cannot be served: llama-server takes a finished GGUF"
            raise BadRequest(text, code="not_supported")
        return await _streamed(self._created(wanted), stream=wanted.stream)

    async def _created(self, wanted: ollama.Create) -> AsyncIterator[bytes]:
        source = wanted.source
        name = wanted.model.removesuffix(":latest")
        if wanted.files:
            digests = [digest for file, digest in wanted.files.items() if file.lower().endswith(".gguf")]
            if len(digests) != 1 or len(wanted.files) != 1:
                raise BadRequest("`files` must name one .gguf file: other formats would have to be converted first")
            changed = bool(wanted.system or wanted.parameters)
            source = f"{name}-base" if changed else name
            async for record in self._adopted(digests[0], source):
                yield record
        if source != name:
            yield ollama.render_progress("using existing layer")
            await self._actions.set_alias(name, source, system=wanted.system, options=wanted.parameters)
            yield ollama.render_progress(ollama.WRITING_MANIFEST)
        yield ollama.render_progress(ollama.SUCCESS)

    async def _adopted(self, digest: str, name: str) -> AsyncIterator[bytes]:
        """A model of a file that was sent: a supervisor fetches it from here."""
        if self._blobs.find(digest) is None:
            raise BadRequest(f"blob {digest} was not sent to this gateway", status=404, code="blob_not_found")
        yield ollama.render_progress("parsing GGUF")
        command = PullModel(
            url=f"{self._address}/internal/blobs/{digest}",
            sha256=digest.partition(":")[2],
            name=name,
            token=self._blobs.ticket(digest),
            replace=True,
        )
        async for record in self._fetched(await self._actions.start_pull(command)):
            yield record
        self._blobs.discard(digest)

    async def copy(self, request: PageRequest, body: Body) -> Reply:
        wanted = ollama.read_copy(request.body)
        await self._actions.set_alias(wanted.destination, wanted.source)
        return Reply(body=b"")

    async def delete(self, request: PageRequest, body: Body) -> Reply:
        await self._actions.delete(ollama.read_delete(request.body).model)
        return Reply(body=b"")

    async def has_blob(self, request: PageRequest, body: Body) -> Reply:
        found = self._blobs.find(request.parameters["digest"])
        return Reply(body=b"", status=200 if found is not None else 404)

    async def take_blob(self, request: PageRequest, body: Body) -> Reply:
        stored = await self._blobs.store(request.parameters["digest"], body)
        return Reply(body=b"", status=201 if stored else 200)

    async def give_blob(self, request: PageRequest, body: Body) -> Reply | Streaming:
        secret = request.headers.get("authorization", "").removeprefix("Bearer ")
        path = self._blobs.admit(request.parameters["digest"], secret)
        return Streaming(read_file(path), "application/octet-stream", path.stat().st_size)


class LmStudioHandlers:
    """LM Studio's load, unload and download (reference: api-dialects, 6.1 and 6.5)."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def table(self) -> tuple[Handler, ...]:
        load, download = "/api/v1/models/load", "/api/v1/models/download"
        return (
            _handler("POST", load, self.load, "Load a model and wait for it", '{"model": "cria"}', dialect=LMSTUDIO),
            _handler("POST", "/api/v1/models/unload", self.unload, "Unload an instance of a model", dialect=LMSTUDIO),
            _handler("POST", download, self.download, "Begin to get a GGUF from Hugging Face", dialect=LMSTUDIO),
            _handler(
                "GET", f"{download}/status/{{job_id}}", self.status, "How far it is", dialect=LMSTUDIO, manages=False
            ),
        )

    async def load(self, request: PageRequest, body: Body) -> Reply:
        wanted = lmstudio_residency.read_load(request.body)
        model = self._actions.card(wanted.model).model
        since = time.monotonic_ns()
        instance = await self._actions.loader.ready(model)
        loaded = Loaded(
            name=instance.name,
            node=instance.node,
            state=instance.state,
            context_tokens=instance.context_tokens,
            slots=instance.slots,
        )
        took_ns = time.monotonic_ns() - since
        card = self._actions.card(wanted.model)
        return Reply(body=lmstudio_residency.render_loaded(card, loaded, wanted, load_ns=took_ns))

    async def unload(self, request: PageRequest, body: Body) -> Reply:
        wanted = lmstudio_residency.read_unload(request.body)
        model, _ = lmstudio_residency.find_instances(self._actions.herd(), wanted)
        await self._actions.loader.unload(model)
        return Reply(body=lmstudio_residency.render_unloaded(wanted))

    async def download(self, request: PageRequest, body: Body) -> Reply:
        wanted = lmstudio_downloads.read_download(request.body)
        command = PullModel(repository=HUBS.sub("", wanted.model), quantization=wanted.quantization or "")
        accepted = await self._actions.start_pull(command)
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
        pull = self._actions.view.fleet.pulls.get(job_id)
        if pull is None:
            raise lmstudio_downloads.unknown_job(job_id)
        return Reply(body=lmstudio_downloads.render_download_status(_download(pull), now_ns=time.time_ns()))


class OpenAiHandlers:
    """The one thing OpenAI's clients can change."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions

    def table(self) -> tuple[Handler, ...]:
        path = "/v1/models/{id*}"
        return (_handler("DELETE", path, self.delete, "Delete a model's files", dialect=OPENAI, takes_body=False),)

    async def delete(self, request: PageRequest, body: Body) -> Reply:
        name = request.parameters["id"]
        await self._actions.delete(name)
        return Reply(body=msgspec.json.encode({"id": name, "object": "model", "deleted": True}))


def _download(pull: Pull) -> lmstudio_downloads.Download:
    return lmstudio_downloads.Download(
        job_id=pull.pull,
        status={"running": "downloading", "finished": "completed", "failed": "failed"}[pull.state],  # type: ignore[arg-type]
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
) -> Handler:
    return Handler(
        method=method,
        path=path,
        dialect=dialect,
        answer=answer,
        takes_body=takes_body,
        manages=manages,
        public=public,
        about=about,
        example=example,
    )


async def _streamed(records: AsyncIterator[bytes], *, stream: bool) -> Reply | Streaming:
    """Ollama's choice: every record, or only the last."""
    if stream:
        return Streaming(records, NDJSON)
    *_, last = [record async for record in records]
    return Reply(body=last.rstrip(b"\n"))
