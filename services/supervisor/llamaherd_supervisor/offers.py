"""What `models` of llamaherd.yaml makes of the models on a node: other files, other servers, other capabilities."""

from pathlib import Path
from typing import Final

import msgspec

from llamaherd_shared.events.model import ModelFound, ModelRejected
from llamaherd_shared.model_spec import Models, ModelSpec
from llamaherd_supervisor.launching import resolve

NO_PROJECTOR: Final = "none"


class Offers:
    """What is said about each model."""

    def __init__(self, models: Models, models_dir: Path) -> None:
        self.models_dir = models_dir
        self.replace(models)

    def replace(self, models: Models) -> None:
        """From now on this is said."""
        self.models = models
        self._specs: dict[str, ModelSpec] = {}

    def spec(self, model: str) -> ModelSpec:
        found = self._specs.get(model)
        if found is None:
            found = self._specs[model] = self.models.spec(model)
        return found

    @property
    def defined(self) -> set[str]:
        """Models that are there by their entry, whatever is in the folder."""
        return {name for name in self.models.names if self.entry(name)}

    @property
    def paths(self) -> dict[str, str]:
        """Model -> file, for those whose entry names one."""
        specs = ((name, self.spec(name)) for name in self.models.names)
        return {
            name: resolve(self.models_dir, spec.path)
            for name, spec in specs
            if spec.path is not None and not spec.command
        }

    @property
    def repositories(self) -> dict[str, str]:
        """Model -> repository, for those whose entry names one."""
        specs = ((name, self.spec(name)) for name in self.models.names)
        return {name: spec.repository for name, spec in specs if spec.repository is not None}

    @property
    def files(self) -> set[str]:
        """Of models and projectors, as far as entries name them."""
        projectors = (self.projector(name) for name in self.models.names)
        return {*self.paths.values(), *(path for path in projectors if path)}

    def projector(self, model: str) -> str | None:
        """The projector's file as the entry names it; empty: it is to have none; `None`: the one that is found."""
        mmproj = self.spec(model).mmproj
        if mmproj is None:
            return None
        return "" if mmproj == NO_PROJECTOR else resolve(self.models_dir, mmproj)

    def commands(self, *, node: str, now_ns: int) -> dict[str, ModelFound]:
        """Models that are served by something else than llama-server."""
        specs = {name: self.spec(name) for name in self.models.names}
        return {
            name: ModelFound(
                node=node,
                model=name,
                at_ns=now_ns,
                path=resolve(self.models_dir, spec.path) if spec.path is not None else "",
                size_bytes=0,
                modified_ns=0,
                context_tokens=spec.context_tokens or 0,
                capabilities=list(spec.capabilities or ("completion",)),
                configured=True,
            )
            for name, spec in specs.items()
            if spec.command
        }

    def configure(self, event: ModelFound | ModelRejected) -> ModelFound | ModelRejected:
        """The fact about a file, as its entry wants it told."""
        spec = self.spec(event.model)
        if isinstance(event, ModelFound) and spec.repository is not None:
            event = msgspec.structs.replace(event, repository=spec.repository)
        said = (spec.capabilities, spec.embeddings, spec.reranking, spec.mmproj)
        if isinstance(event, ModelRejected) or all(each is None for each in said):
            return event
        embedding = event.embedding if spec.embeddings is None else spec.embeddings
        capabilities = list(spec.capabilities) if spec.capabilities is not None else _by_options(event, spec)
        return msgspec.structs.replace(event, embedding=embedding, capabilities=capabilities, configured=True)

    def entry(self, model: str) -> str:
        """The setting that makes this model what it is; empty: its file alone does."""
        spec = self.spec(model)
        if spec.command:
            return f"models.{model}.command"
        if spec.repository is not None:
            return f"models.{model}.repository"
        return f"models.{model}.path" if spec.path is not None else ""


def _by_options(event: ModelFound, spec: ModelSpec) -> list[str]:
    if spec.embeddings:
        return ["embedding"]
    if spec.reranking:
        return ["rerank"]
    if spec.embeddings is None and spec.reranking is None:
        return event.capabilities
    return [name for name in event.capabilities if name not in ("embedding", "rerank")] or ["completion"]
