"""Facts about one model file on one node. Written by: supervisor. Read by: gateway, ui."""

import msgspec


class ModelBase(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Fields every model event carries."""

    node: str
    model: str
    """The name clients ask for: the file name without `.gguf`."""
    at_ns: int
    """Unix nanoseconds, from the writer's clock."""


class ModelFound(ModelBase, frozen=True, kw_only=True, tag="model.found.v1"):
    """There is a model that can be loaded (or it has changed): a readable GGUF file, or a `command`."""

    path: str
    """Empty when it is served by a `command` that needs no file."""
    size_bytes: int
    modified_ns: int
    architecture: str = ""
    """GGUF `general.architecture`."""
    title: str = ""
    """GGUF `general.name`."""
    parameters: int = 0
    """Number of weights, summed over the tensor table."""
    context_tokens: int = 0
    """Training context, GGUF `<arch>.context_length`; 0 when the file does not say."""
    embedding_length: int = 0
    """Numbers a token has inside the model, GGUF `<arch>.embedding_length`; 0 when the file does not say."""
    quantization: str = ""
    """Name of GGUF `general.file_type`, e.g. `Q8_0`; empty when the file does not say."""
    chat: bool = False
    """Whether the file carries a chat template."""
    embedding: bool = False
    """Whether it is made for embeddings: the file names a pooling (`<arch>.pooling_type`)."""
    capabilities: list[str] = []
    """What it can be asked for, as far as its files tell: of `completion`, `embedding`, `rerank`, `tools`,
    `thinking`, `insert`, `vision`, `audio`."""
    projector: str = ""
    """Path of the GGUF file that lets it see or hear (`mmproj`); empty without one."""
    projector_bytes: int = 0
    configured: bool = False
    """Whether `capabilities` are as `models` in llamaherd.yaml says, not as its files tell."""
    repository: str = ""
    """Where its file is from, as its entry in `models` names it; empty: no entry does."""


class ModelRejected(ModelBase, frozen=True, kw_only=True, tag="model.rejected.v1"):
    """A `.gguf` file that cannot be served, or not before all of it is there."""

    path: str
    """Empty: nothing of it is there."""
    reason: str
    """One sentence: what is wrong with the file."""
    retry_after_s: float | None = None
    """When asking again may help; `None`: not without somebody's doing."""


class ModelRemoved(ModelBase, frozen=True, kw_only=True, tag="model.removed.v1"):
    """The file is gone."""


ModelEvent = ModelFound | ModelRejected | ModelRemoved
