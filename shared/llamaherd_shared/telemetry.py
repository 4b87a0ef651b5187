"""Log lines on their way to the bus, spans on theirs to a collector. structlog renders, `logging` carries."""

import asyncio
import logging
import os
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from llamaherd_shared.events.line import MAX_BYTES, MAX_LINES, Level, Line, LinePack, encode_lines
from llamaherd_shared.log import structlog
from llamaherd_shared.settings import SettingsError
from llamaherd_shared.trace import trace_id_of, traceparent

if TYPE_CHECKING:
    from llamaherd_shared.bus import Bus

_exporting: Final = threading.Event()
"""Set once spans go somewhere."""

LINGER_S: Final = 0.05
"""How long a line waits for company before its pack is sent."""
SPOOL_LINES: Final = 20_000
"""Lines kept per source while the bus is away; beyond that the oldest are dropped and counted."""


class LinePublisher:
    """Packs the lines of one source and offers them to the bus. Never makes its caller wait."""

    def __init__(self, bus: "Bus", *, node: str, service: str, unit: str) -> None:
        self._bus, self._node, self._service, self._unit = bus, node, service, unit
        self._subject = bus.subjects.log(node, service, unit)
        self._spool: deque[tuple[Line, int, int]] = deque()
        """Each line with its generation and where it ends (`LinePack`)."""
        self._next = 0
        """Number of the next line that comes in."""
        self._dropped = 0
        self._boot = secrets.token_hex(4)
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def resume(self, last: LinePack) -> None:
        """Go on with the numbers of an earlier publisher of this source, from its last pack."""
        self._next = last.first + len(last.lines)

    def offer(self, line: Line, *, generation: int = 0, read_bytes: int = 0) -> None:
        """Take one line, and where in which file it ends; call from the event loop's thread."""
        self._spool.append((line, generation, read_bytes))
        self._next += 1
        if len(self._spool) > SPOOL_LINES:
            self._spool.popleft()
            self._dropped += 1
        if len(self._spool) >= MAX_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(LINGER_S, self.flush)

    def flush(self) -> None:
        """Hand over everything that waits; what the bus cannot take yet stays spooled."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._spool:
            pack = self._pack()
            accepted = self._bus.offer(
                self._subject, encode_lines(pack), msg_id=f"{self._boot}:{self._unit}:{pack.first}"
            )
            if not accepted:
                self._timer = self._loop.call_later(1.0, self.flush)
                return
            for _ in pack.lines:
                self._spool.popleft()
            self._dropped = 0

    def _pack(self) -> LinePack:
        lines: list[Line] = []
        size = generation = read_bytes = 0
        for line, of, until in self._spool:
            size += len(line.text) + 40
            if lines and (len(lines) == MAX_LINES or size > MAX_BYTES):
                break
            lines.append(line)
            generation, read_bytes = of, until
        return LinePack(
            node=self._node,
            service=self._service,
            unit=self._unit,
            first=self._next - len(self._spool),
            dropped=self._dropped,
            generation=generation,
            read_bytes=read_bytes,
            lines=lines,
        )


class LineHandler(logging.Handler):
    """Turns log records into lines; records from other threads are handed to the loop."""

    def __init__(self, publisher: LinePublisher, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._publisher, self._loop = publisher, loop

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        line = Line(
            at_ns=int(record.created * 1e9),
            level=level_of(record.levelno),
            text=text[:MAX_BYTES],
            trace_id=trace_id_of(traceparent.get()) or "",
        )
        if self._loop.is_closed():
            return
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            self._publisher.offer(line)
        else:
            self._loop.call_soon_threadsafe(self._publisher.offer, line)

    def close_lines(self) -> None:
        """Hand the last lines over and take no more."""
        logging.getLogger().removeHandler(self)
        self._publisher.flush()


def level_of(number: int) -> Level:
    """The level of a standard library level number."""
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warning"
    return "info" if number >= logging.INFO else "debug"


def configure_logging(service: str, level: str) -> None:
    """Send structlog and the standard library's loggers to stderr, one readable line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_StderrFormatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "nats", "asyncio", "watchfiles"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info, _render],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def publish_logging(publisher: LinePublisher, loop: asyncio.AbstractEventLoop) -> LineHandler:
    """From now on every log record goes to the bus as well; remove the handler before the bus closes."""
    handler = LineHandler(publisher, loop)
    logging.getLogger().addHandler(handler)
    return handler


def _render(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    """`sentence key=value ...`: readable for people, searchable by word."""
    text = str(event.pop("event", ""))
    exception = event.pop("exception", None)
    pairs = " ".join(f"{key}={value}" for key, value in event.items())
    line = f"{text} {pairs}".rstrip()
    return f"{line}\n{exception}" if exception else line


class _StderrFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {service}[{os.getpid()}] %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    converter = staticmethod(time.gmtime)


def setup_tracing(service: str, endpoint: str | None) -> None:
    """Export spans over OTLP/HTTP when an endpoint is set; the SDK is imported only then (10 MB).

    Raises `SettingsError` when the exporter is not installed.
    """
    if endpoint is None:
        return
    try:
        _start_exporter(service, endpoint)
    except ImportError as error:
        raise SettingsError(
            f"setting `otlp_endpoint`: {error.name} is not installed: pip install 'llamaherd-shared[otlp]'"
        ) from error


def is_tracing() -> bool:
    """Whether spans go anywhere."""
    return _exporting.is_set()


def record_span(
    name: str, *, parent: str, start_ns: int, end_ns: int, attributes: Mapping[str, str | int | float], failed: bool
) -> None:
    """Export one finished span below `parent` (a `traceparent`). Only while `is_tracing()`."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent})
    span = trace.get_tracer("llamaherd").start_span(
        name, context=context, kind=trace.SpanKind.SERVER, start_time=start_ns, attributes=dict(attributes)
    )
    if failed:
        span.set_status(trace.StatusCode.ERROR)
    span.end(end_time=end_ns)


def _start_exporter(service: str, endpoint: str) -> None:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"llamaherd-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")))
    trace.set_tracer_provider(provider)
    _exporting.set()
