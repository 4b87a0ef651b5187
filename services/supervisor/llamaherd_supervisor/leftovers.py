"""Processes that the supervisor before us left on this host: found at the start, ended when they belong to nobody."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from llamaherd_supervisor import adoption, instance_files
from llamaherd_supervisor.adoption import Adopt, Left, Record, Running
from llamaherd_supervisor.lifecycle import Instance
from llamaherd_supervisor.process import boot_id, end_processes, look
from llamaherd_supervisor.projection import Known
from llamaherd_supervisor.workplace import Workplace


class Leftovers:
    """Of one node and data folder."""

    def __init__(self, at: Workplace) -> None:
        self._at = at
        self._folder: Path = at.data_dir / "instances"
        self._boot_id = boot_id()

    async def find(self, known: Known) -> tuple[list[Left], list[Running]]:
        """What is left of each instance, and the processes that belong to none."""
        records = {(record.model, record.index): record for record in instance_files.read_records(self._folder)}
        running = await self._look(records.values())
        left = []
        for key in {**known.instances, **records}:
            instance = known.instances.get(key) or Instance(node=self._at.node, model=key[0], index=key[1])
            record = records.get(key)
            found = adoption.decide(instance, record, running, boot_id=self._boot_id, secret=self._at.secret)
            left.append(Left(instance=instance, record=record, found=found))
        adopted = [each.found for each in left if isinstance(each.found, Adopt)]
        return left, self._orphans(running, adopted, records.values())

    async def end(self, processes: list[Running], *, patience_s: float) -> None:
        """SIGTERM, after `patience_s` SIGKILL, to these and their groups."""
        if not processes:
            return
        log = self._at.service.log
        log.warning("ending llama-servers that belong to no instance", pids=[process.pid for process in processes])
        if alive := await end_processes(processes, patience_s=patience_s):
            log.error("cannot end llama-servers that belong to no instance", pids=alive)

    async def end_all(self) -> None:
        """Whatever of ours still runs, without further ado."""
        await self.end(self._orphans(await self._look([]), [], []), patience_s=0)

    async def _look(self, records: Iterable[Record]) -> list[Running]:
        pids = {record.pid for record in records if record.pid is not None}
        return await asyncio.to_thread(look, pids, data_dir=str(self._at.data_dir))

    def _orphans(
        self, running: Iterable[Running], adopted: Iterable[Adopt], records: Iterable[Record]
    ) -> list[Running]:
        return adoption.find_orphans(
            running,
            list(adopted),
            list(records),
            data_dir=str(self._at.data_dir),
            node=self._at.node,
            boot_id=self._boot_id,
        )
