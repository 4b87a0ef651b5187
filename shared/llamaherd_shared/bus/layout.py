"""Creates the streams of `streams.py` and keeps them as described. Idempotent; racing creators are fine."""

from collections.abc import Sequence
from typing import Any, Final

from nats.js import api
from nats.js.client import JetStreamContext
from nats.js.errors import BadRequestError, NotFoundError

from llamaherd_shared.streams import Stream, stream_name

NAME_IN_USE: Final = 10058


def stream_config(stream: Stream, prefix: str) -> api.StreamConfig:
    """A row of the table in JetStream's terms."""
    republish = None
    if stream.live is not None:
        republish = api.RePublish(src=f"{prefix}.{stream.kind}.>", dest=f"{prefix}.{stream.live}")
    config = api.StreamConfig(
        name=stream_name(stream.name, prefix),
        description=stream.why,
        subjects=[f"{prefix}.{stream.kind}.>"],
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.OLD,
        storage=api.StorageType(stream.storage),
        compression=api.StoreCompression.S2 if stream.compressed else api.StoreCompression.NONE,
        max_age=stream.max_age_s,
        max_bytes=stream.max_bytes,
        duplicate_window=stream.duplicate_window_s,
        allow_direct=True,
        deny_delete=stream.deny_delete,
        num_replicas=1,
        republish=republish,
    )
    if stream.last_per_subject:
        config.max_msgs_per_subject = 1
        config.allow_msg_ttl = True
    if stream.tells_expiry:
        config.subject_delete_marker_ttl = 60
        config.allow_rollup_hdrs = True
    return config


async def ensure_streams(js: JetStreamContext, streams: Sequence[Stream], prefix: str) -> list[str]:
    """Create what is missing and update what differs; returns the names that were changed."""
    return [stream.name for stream in streams if await _ensure(js, stream_config(stream, prefix))]


async def _ensure(js: JetStreamContext, config: api.StreamConfig) -> bool:
    assert config.name is not None
    try:
        current = await js.stream_info(config.name)
    except NotFoundError:
        try:
            await js.add_stream(config)
        except BadRequestError as error:
            if error.err_code != NAME_IN_USE:
                raise
            # Somebody else made it in between, perhaps an older version of us: compare.
            current = await js.stream_info(config.name)
        else:
            return True
    wanted, present = config.as_dict(), current.config.as_dict()
    if all(present.get(key) == value for key, value in wanted.items() if _says_something(value)):
        return False
    await js.update_stream(config)
    return True


def _says_something(value: Any) -> bool:
    """nats-server leaves out what has its default value, so an absent key is no difference."""
    return value not in (None, 0, -1, False, [], "none")
