"""What everything that works on the instances of a node has in common."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from llamaherd_shared.events.model import ModelEvent, ModelFound
from llamaherd_shared.model_options import LoadOptions
from llamaherd_shared.service import Service
from llamaherd_supervisor.journal import Journal
from llamaherd_supervisor.launching import Plan, make_plan
from llamaherd_supervisor.lifecycle import Instance
from llamaherd_supervisor.memory import Memory
from llamaherd_supervisor.offers import Offers
from llamaherd_supervisor.process import OomKills, Ports
from llamaherd_supervisor.settings import SupervisorSettings
from llamaherd_supervisor.turns import Turns

HOST: Final = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What every owner works with."""

    service: Service
    settings: SupervisorSettings
    journal: Journal
    llama_server: str
    secret: bytes
    environment: Mapping[str, str]
    models: Mapping[str, ModelEvent]
    """The last fact about each model file, kept current by `app.py`."""
    offers: Offers
    """What llamaherd.yaml says about models."""
    memory: Memory
    spawning: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the owner that starts a process."""
    ports: Ports = field(default_factory=lambda: Ports(HOST))
    oom_kills: OomKills = field(default_factory=OomKills)
    turns: Turns = field(default_factory=Turns)
    """Taken before anything that many instances may have to do in the same moment."""

    @property
    def node(self) -> str:
        return self.service.common.node

    @property
    def data_dir(self) -> Path:
        return self.service.common.data_dir

    def plan(
        self, instance: Instance, asked: LoadOptions, offers: Offers | None = None, found: ModelEvent | None = None
    ) -> Plan:
        """What a process of this model would be started with now, or with other offers and another fact about it."""
        found = found or self.models.get(instance.model)
        if not isinstance(found, ModelFound):
            # Its file is gone, or cannot be read any more; llama-server will say so.
            found = ModelFound(
                node=self.node, model=instance.model, at_ns=0, path=instance.path, size_bytes=0, modified_ns=0
            )
        return make_plan(
            (offers or self.offers).spec(instance.model).of_instance(instance.index),
            found,
            asked,
            models_dir=self.settings.models_dir,
            secret=self.secret,
        )
