"""What the process of a model is started with: what `models` says, what the load asked for, what the file tells."""

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from llamaherd_shared.events.model import ModelFound
from llamaherd_shared.model_options import LoadOptions, ModelOptions, is_template_file, overlay
from llamaherd_shared.model_spec import ModelSpec

MOST_BATCH_TOKENS: Final = 8192
"""Of one embedding: what a batch of this size takes in memory is bearable on every machine that loads the model."""
DIGEST_CHARACTERS: Final = 16


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that matters of a process but its port and its key. Two equal plans are started alike."""

    path: str
    """The model file; empty for a `command` without one."""
    options: ModelOptions = ModelOptions()
    """What llama-server is told; files are absolute."""
    args: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    """Instead of llama-server; empty: that."""
    health_path: str = "/health"
    architecture: str = ""
    env: dict[str, str] = {}
    """Variable -> keyed digest of what was written for it, by which a change is seen. Values are nowhere."""
    router: bool = False
    """Whether the node's router is to serve it, if it can."""

    @property
    def files(self) -> dict[str, str]:
        """Files that must be there, by what they are for."""
        if self.command:
            return {"path": self.path} if self.path else {}
        return {"path": self.path, **{name: value for name, value in _files(self.options)}}

    def fitted(self, context_tokens: int | None) -> "Plan":
        """With this context, where memory is too short for the one that nobody asked to change. `None`: as it is."""
        if context_tokens is None:
            return self
        options = msgspec.structs.replace(self.options, context_tokens=context_tokens)
        return msgspec.structs.replace(self, options=options)


def make_plan(spec: ModelSpec, found: ModelFound, asked: LoadOptions, *, models_dir: Path, secret: bytes) -> Plan:
    """`found`: the last fact about the model, which tells its path and projector. `secret` keys the digests."""
    env = {name: _digest(secret, name, value) for name, value in spec.env.items()}
    if spec.command:
        options = ModelOptions(slots=spec.slots, context_tokens=spec.context_tokens)
        return Plan(path=found.path, options=options, command=spec.command, health_path=spec.health_path, env=env)
    return Plan(
        path=found.path,
        options=_complete(_locate(overlay(spec.options, asked), models_dir), found),
        args=spec.args,
        architecture=found.architecture,
        env=env,
        # A router serves each model once.
        router=spec.router and spec.most_replicas == 1,
    )


def differences(before: Plan, after: Plan) -> list[str]:
    """Why a process that was started by one plan is not what the other one wants; `option: old -> new`."""
    old, new = _told(before), _told(after)
    told = [
        f"{name}: {_spell(old.get(name))} -> {_spell(new.get(name))}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]
    changed = [name for name in {**before.env, **after.env} if before.env.get(name) != after.env.get(name)]
    return told + [f"env.{name}: changed" for name in changed]


def resolve(models_dir: Path, file: str) -> str:
    """Where a file of `models` is: absolute, in the home folder (`~`), or in the models folder."""
    return str(models_dir / Path(file).expanduser())


def _told(plan: Plan) -> dict[str, Any]:
    """By the names of `models`; the health path of llama-server is nobody's business."""
    said: dict[str, Any] = {"path": plan.path, **plan.options.said}
    if plan.command:
        said |= {"command": plan.command, "health_path": plan.health_path}
    return said | ({"args": plan.args} if plan.args else {}) | ({"router": True} if plan.router else {})


def _spell(value: Any) -> str:
    if value is None:
        return "unset"
    return msgspec.json.encode(value).decode() if not isinstance(value, str) else value


def _locate(options: ModelOptions, models_dir: Path) -> ModelOptions:
    """The options with every file where it is."""
    changes: dict[str, Any] = {}
    for name in ("draft_model", "chat_template"):
        value = getattr(options, name)
        if value is not None and (name != "chat_template" or is_template_file(value)):
            changes[name] = resolve(models_dir, value)
    if options.lora is not None:
        changes["lora"] = tuple(
            resolve(models_dir, each)
            if isinstance(each, str)
            else msgspec.structs.replace(each, path=resolve(models_dir, each.path))
            for each in options.lora
        )
    return msgspec.structs.replace(options, **changes)


def _complete(options: ModelOptions, found: ModelFound) -> ModelOptions:
    """With what nothing was said of and the file tells. The projector is found, or placed, with the model."""
    changes: dict[str, Any] = {"mmproj": found.projector or None}
    if options.embeddings is None and found.embedding:
        changes["embeddings"] = True
    if options.reranking is None and "rerank" in found.capabilities:
        changes["reranking"] = True
    completed = msgspec.structs.replace(options, **changes)
    if not (completed.embeddings or completed.reranking) or not found.context_tokens:
        return completed
    # All of a text goes through the model at once: llama-server's 512 would be the longest.
    ubatch = completed.ubatch_tokens or min(found.context_tokens, MOST_BATCH_TOKENS)
    return msgspec.structs.replace(completed, ubatch_tokens=ubatch, batch_tokens=completed.batch_tokens or ubatch)


def _files(options: ModelOptions) -> Iterator[tuple[str, str]]:
    for name in ("mmproj", "draft_model"):
        if (value := getattr(options, name)) is not None:
            yield name, value
    if options.chat_template is not None and is_template_file(options.chat_template):
        yield "chat_template", options.chat_template
    for number, adapter in enumerate(options.lora or ()):
        yield f"lora.{number}", adapter if isinstance(adapter, str) else adapter.path


def _digest(secret: bytes, name: str, value: str) -> str:
    return hmac.new(secret, f"{name}={value}".encode(), hashlib.sha256).hexdigest()[:DIGEST_CHARACTERS]


def fill_macros(words: Mapping[str, str], text: str) -> str:
    """`${NAME}` replaced; what is not among the words stays as it is."""
    for name, value in words.items():
        text = text.replace(f"${{{name}}}", value)
    return text
