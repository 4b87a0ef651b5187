"""The bus: the only package that imports nats.

nats-py's own `fetch`, ordered consumer, `publish_async`, KV watcher and `micro.stop()` lose or repeat events or
hang when a server restarts; so there is a publisher (`publisher.py`), a reader (`reader.py`) and a
request server (`requests.py`) of our own on its core API. docs/adr/0007 tells what was seen.
"""

from llamaherd_shared.bus.connection import Bus, BusClosed, StreamHead, Watch
from llamaherd_shared.bus.publisher import PublishRefused
from llamaherd_shared.bus.recorded import Recorded
from llamaherd_shared.bus.requests import Served

__all__ = ["Bus", "BusClosed", "PublishRefused", "Recorded", "Served", "StreamHead", "Watch"]
