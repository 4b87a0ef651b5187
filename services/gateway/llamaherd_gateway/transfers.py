"""Models that come, told as Ollama tells of it, record by record: pulled from a hub, or made of what is here."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from llamaherd_gateway.actions import Actions, Wishes
from llamaherd_gateway.blobs import Blobs
from llamaherd_gateway.dialects import ollama
from llamaherd_gateway.problems import BadRequest, UnknownModel
from llamaherd_gateway.routing.names import LATEST
from llamaherd_gateway.routing.table import unknown_model_message
from llamaherd_shared.commands import PullAccepted, PullModel
from llamaherd_shared.errors import Conflict

CONVERTED: Final = (".safetensors", ".bin", ".pth", ".json")
"""Files of models that would first have to be made a GGUF."""


class Transfers:
    """What is refused is refused before the first record. Every method raises `HerdError`."""

    def __init__(self, actions: Actions, blobs: Blobs, address: Callable[[], str]) -> None:
        """`address`: where a supervisor reaches this gateway, `http://host:port`."""
        self._actions, self._blobs, self._address = actions, blobs, address

    async def pull(self, wanted: ollama.Pull) -> AsyncGenerator[bytes, None]:
        """From the hub; a model that is here and names no repository needs nothing."""
        if "/" in wanted.model:
            async for record in self._pulled(wanted.model):
                yield record
        elif self._actions.model_called(wanted.model) is None:
            text = f"pull model manifest: {wanted.model!r} names no repository: use hf.co/OWNER/NAME[:QUANTIZATION]"
            raise BadRequest(text, code="no_repository")
        else:
            yield ollama.render_progress(ollama.PULLING_MANIFEST)
        yield ollama.render_progress(ollama.SUCCESS)

    async def _pulled(self, name: str) -> AsyncGenerator[bytes, None]:
        """Every record but the last. The model is called so from now on, whoever waits for it."""
        self._actions.check_alias(name, None)
        command = PullModel(repository=name.removesuffix(LATEST))
        accepted = await self._actions.start_pull(command)
        await self.name_pulled(name, accepted)
        yield ollama.render_progress(ollama.PULLING_MANIFEST)
        async with aclosing(self._fetched(accepted, ollama.pulling)) as records:
            async for record in records:
                yield record
        yield ollama.render_progress(ollama.VERIFYING)
        yield ollama.render_progress(ollama.WRITING_MANIFEST)
        await self._actions.until_known(accepted.model)
        yield ollama.render_progress(ollama.REMOVING_UNUSED)

    async def name_pulled(self, name: str, accepted: PullAccepted) -> None:
        """Let a model that is being pulled be asked for by the name it was pulled by."""
        known = self._actions.view.fleet.aliases.get(name.removesuffix(LATEST))
        if known is None or known.model != accepted.model:
            await self._actions.set_alias(name, accepted.model, Wishes(), came_with_model=True)

    async def _fetched(self, accepted: PullAccepted, status: Callable[[str], str]) -> AsyncGenerator[bytes, None]:
        """Records of the files as they come. Raises why they do not."""
        async with aclosing(self._actions.follow_pull(accepted)) as changes:
            async for pull in changes:
                digest = pull.sha256 or accepted.pull
                if pull.total_bytes:
                    yield ollama.render_progress(
                        status(digest), digest=f"sha256:{digest}", total=pull.total_bytes, completed=pull.done_bytes
                    )

    async def create(self, wanted: ollama.Create) -> AsyncGenerator[bytes, None]:
        """A name for another model, or for a file that was sent before."""
        _refuse_unservable(wanted)
        wishes = Wishes(system=wanted.system, options=wanted.parameters, messages=wanted.messages)
        make = self._of_file if wanted.files else self._of_model
        async with aclosing(make(wanted, wishes)) as records:
            async for record in records:
                yield record
        yield ollama.render_progress(ollama.WRITING_MANIFEST)
        yield ollama.render_progress(ollama.SUCCESS)

    async def _of_model(self, wanted: ollama.Create, wishes: Wishes) -> AsyncGenerator[bytes, None]:
        model = self._actions.model_called(wanted.source)
        if model is None and "/" not in wanted.source:
            raise UnknownModel(unknown_model_message(wanted.source, self._actions.view.table.known))
        self._actions.check_alias(wanted.model, model)
        if model is None:
            async with aclosing(self._pulled(wanted.source)) as records:
                async for record in records:
                    yield record
        yield ollama.render_progress(ollama.using(self._actions.card(wanted.source).digest))
        await self._actions.name(wanted.model, wanted.source, wishes)

    async def _of_file(self, wanted: ollama.Create, wishes: Wishes) -> AsyncGenerator[bytes, None]:
        """The file goes to where a model of this name is already, or to one node."""
        actions, name = self._actions, self._actions.spell(wanted.model)
        (digest,) = wanted.files.values()
        sha256 = self._blobs.hex_of(digest)
        model = actions.model_of_content(sha256)
        before = actions.view.fleet.aliases.get(name)
        came = before is not None and before.model == model and before.came_with_model
        if model is not None and (name == model or name not in actions.view.table.known):
            actions.check_alias(name, model)
            yield ollama.render_progress(ollama.using(sha256))
        elif model is not None and self._blobs.find(digest) is None:
            # It was not taken when it was sent: that model has it.
            raise Conflict(f"the file of {name!r} is another model's: delete that one first")
        else:
            model, came = actions.free_file_name(name), True
            actions.check_alias(name, model)
            self._check_blob(digest)
            async with aclosing(self._sent(digest, model)) as records:
                async for record in records:
                    yield record
        if name != model or wishes:
            await actions.set_alias(name, model, wishes, came_with_model=came)
        elif before is not None:
            await actions.remove_alias(name)

    async def _sent(self, digest: str, model: str) -> AsyncGenerator[bytes, None]:
        """Every node it belongs to fetches the file from here."""
        ticket = self._blobs.ticket(digest)
        command = PullModel(
            url=f"{self._address()}/internal/blobs/{digest}",
            sha256=self._blobs.hex_of(digest),
            name=model,
            token=ticket,
            replace=True,
        )
        try:
            for node in self._actions.nodes_for(model):
                accepted = await self._actions.start_pull(command, node=node)
                yield ollama.render_progress(ollama.PARSING)
                async with aclosing(self._fetched(accepted, ollama.creating)) as records:
                    async for record in records:
                        yield record
        finally:
            self._blobs.withdraw(ticket)
        await self._actions.until_known(model)
        # What is in memory is of the file before.
        await self._actions.unload(model)
        self._blobs.discard(digest)

    def _check_blob(self, digest: str) -> None:
        path = self._blobs.find(digest)
        if path is None:
            raise BadRequest(f"blob {digest} was not sent to this gateway", status=404, code="blob_not_found")
        if not self._blobs.is_gguf(digest):
            raise BadRequest(f"blob {digest} is not a GGUF file: other formats would have to be converted first")


def _refuse_unservable(wanted: ollama.Create) -> None:
    for field in ("adapters", "quantize", "template"):
        if getattr(wanted, field):
            text = f"`{field}` cannot be served: llama-server takes a finished GGUF with its own template"
            raise BadRequest(text, param=field, code="not_supported")
    if wanted.files and (len(wanted.files) > 1 or next(iter(wanted.files)).lower().endswith(CONVERTED)):
        text = "`files` must name one GGUF: other formats would have to be converted first"
        raise BadRequest(text, param="files", code="not_supported")
