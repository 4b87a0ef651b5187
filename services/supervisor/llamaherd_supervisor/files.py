"""Commands about model files: what one says about itself, and removing one."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final

from llamaherd_shared.commands import DeleteModel, DescribeModel, ModelDeleted, ModelDescription
from llamaherd_shared.errors import Conflict, NotFound, Rejected, Unavailable
from llamaherd_shared.events.model import ModelFound, ModelRejected
from llamaherd_supervisor import reconcile, store
from llamaherd_supervisor.gguf_file import UnreadableGguf
from llamaherd_supervisor.handlers import Owner
from llamaherd_supervisor.lifecycle import State, Wanted
from llamaherd_supervisor.workplace import Workplace

_MARGIN_S: Final = 5.0
"""Beyond the drain and stop time-outs, for an unload to be over."""


class FileCommands:
    """Answers `describe` and `delete`."""

    def __init__(
        self,
        at: Workplace,
        *,
        owners_of: Callable[[str], Sequence[Owner]],
        is_pulling: Callable[[str], bool],
        looking: asyncio.Lock,
        gone: Callable[[str], None],
    ) -> None:
        """`looking` keeps the models folder from being looked at; `gone` announces that a model is not in it."""
        self._at, self._owners_of, self._is_pulling = at, owners_of, is_pulling
        self._looking, self._gone = looking, gone

    async def describe(self, command: DescribeModel) -> ModelDescription:
        """Read from the file itself, in a thread. Raises why it cannot be."""
        found = self._find(command.model)
        if isinstance(found, ModelRejected):
            raise Rejected(f"{found.path or found.model} cannot be read: {found.reason}")
        if not found.path:
            raise Rejected(f"{command.model} has no file: it is served by a command")
        try:
            description = await asyncio.to_thread(store.read_description, found.path, verbose=command.verbose)
        except UnreadableGguf as error:
            raise Rejected(f"{found.path} cannot be read: {error}") from error
        return ModelDescription(
            node=self._at.node,
            model=command.model,
            path=found.path,
            size_bytes=found.size_bytes,
            modified_ns=found.modified_ns,
            metadata=description.metadata,
            emptied=description.emptied,
            chat_template=description.chat_template,
            tensors=description.tensors,
        )

    async def delete(self, command: DeleteModel) -> ModelDeleted:
        """Returns once the files are gone. Raises why they stay."""
        found = self._find(command.model)
        if entry := self._at.offers.entry(command.model):
            raise Rejected(f"{command.model} is there by `{entry}` in llamaherd.yaml: take it out there")
        models_dir = self._at.settings.models_dir
        paths = await asyncio.to_thread(store.model_paths, found.path, models_dir=models_dir)
        with contextlib.suppress(Rejected):
            # Outside the models folder it stays.
            if projector := self._own_projector(found):
                paths += await asyncio.to_thread(store.model_paths, projector, models_dir=models_dir)
        if self._is_pulling(command.model):
            raise Conflict(f"{command.model} is being pulled: cancel that first")
        if command.unload:
            await self._unload(command.model)
        async with self._looking:
            # From here to the announcement nothing is awaited: nobody loads it meanwhile.
            self._find(command.model)
            self._check_unloaded(command.model)
            self._gone(command.model)
            removed = await asyncio.to_thread(store.remove_files, paths, models_dir=models_dir)
        self._at.service.log.info("model deleted", model=command.model, files=len(removed))
        return ModelDeleted(node=self._at.node, model=command.model, paths=removed)

    def _find(self, model: str) -> ModelFound | ModelRejected:
        found = self._at.models.get(model)
        if isinstance(found, ModelFound | ModelRejected):
            return found
        raise NotFound(reconcile.unknown_model(model, node=self._at.node, models=self._at.models))

    def _own_projector(self, found: ModelFound | ModelRejected) -> str:
        """The projector that no other model needs; empty when there is none."""
        projector = found.projector if isinstance(found, ModelFound) else ""
        others = (other for other in self._at.models.values() if isinstance(other, ModelFound))
        # Another name of the same file goes with it.
        shared = any(other.projector == projector and other.path != found.path for other in others)
        return "" if shared else projector

    async def _unload(self, model: str) -> None:
        owners = self._owners_of(model)
        limits = self._at.settings.limits()
        timeout_s = limits.drain_timeout_s + limits.stop_timeout_s + _MARGIN_S
        for owner in owners:
            owner.ask(Wanted(wanted=False, cause="unload", asked_ns=time.time_ns()))
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(owner.settled.wait() for owner in owners))
        except TimeoutError:
            raise Unavailable(f"{model} could not be unloaded within {timeout_s:g} s; it was not deleted") from None

    def _check_unloaded(self, model: str) -> None:
        for owner in self._owners_of(model):
            if owner.instance.state is State.FAILED:
                # Nothing runs, and there is nothing to try again.
                owner.ask(Wanted(wanted=False, cause="unload", asked_ns=time.time_ns()))
            elif not owner.settled.is_set():
                raise Conflict(f"{model} is {owner.instance.state}: unload it first")
