"""A node that is drained: it takes no loads, and what runs there finishes its answers and is unloaded."""

import time
from collections.abc import Callable, Mapping

from llamaherd_shared.commands import DrainNode, NodeDrainState
from llamaherd_shared.events.node import NodeDrained, NodeResumed
from llamaherd_supervisor.eviction import Key
from llamaherd_supervisor.handlers import Owner
from llamaherd_supervisor.lifecycle import ALIVE, DRAINED, Wanted
from llamaherd_supervisor.workplace import Workplace


class Maintenance:
    """Answers `drain`. What was said last holds across restarts of the supervisor, until the opposite is said."""

    def __init__(self, at: Workplace, owners: Mapping[Key, Owner], *, resumed: Callable[[], None]) -> None:
        """`resumed` is called when loads may begin again."""
        self._at, self._owners, self._resumed = at, owners, resumed
        self.drained = False

    def recall(self, drained: bool) -> None:
        """What the supervisor before us was told last."""
        self.drained = drained

    async def answer(self, command: DrainNode) -> NodeDrainState:
        """Returns at once; saying it twice is saying it once."""
        node, subject = self._at.node, self._at.service.bus.subjects.node(self._at.node)
        if command.drained != self.drained:
            self.drained = command.drained
            fact = NodeDrained if command.drained else NodeResumed
            self._at.journal.record(subject, fact(node=node, at_ns=time.time_ns()))
            self._at.service.log.info("drained for maintenance" if command.drained else "takes loads again")
        if self.drained:
            for owner in self._owners.values():
                if owner.is_wanted:
                    owner.ask(Wanted(wanted=False, cause=DRAINED, asked_ns=time.time_ns()))
        else:
            self._resumed()
        loaded = sorted({model for (model, _), owner in self._owners.items() if owner.instance.state in ALIVE})
        return NodeDrainState(node=node, drained=self.drained, loaded=loaded)
