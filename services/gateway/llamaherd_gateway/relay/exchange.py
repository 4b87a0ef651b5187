"""One request on a hot route, from its first byte to its event: receive, route, wait its turn, relay, record.

Rules: an exchange answers only when it is its turn on the connection. It writes what one upstream read brought in
one write. It ends exactly once, with exactly one `RequestFinished`. Nothing in it waits for the bus, but an answer
that is kept: its end is told when it is stored (`keeping.py`).
"""

import secrets
import time
from itertools import count
from random import getrandbits
from typing import TYPE_CHECKING, Final

import msgspec

from llamaherd_gateway.dialects.dialect import Asked, Call, Turn
from llamaherd_gateway.problems import ERROR_BODY_BYTES, Problem, late_body, problem_of, read_error
from llamaherd_gateway.projection import Instance
from llamaherd_gateway.relay.answer import Answer
from llamaherd_gateway.relay.heads import Head, render_request_end
from llamaherd_gateway.relay.inflating import inflate
from llamaherd_gateway.relay.judging import Judged
from llamaherd_gateway.relay.keeping import Keeping
from llamaherd_gateway.relay.leftover import Leftover
from llamaherd_gateway.relay.pursuit import ATTEMPTS, Pursuit
from llamaherd_gateway.relay.routed import address, hear
from llamaherd_gateway.relay.upstream import Connection, Pool
from llamaherd_gateway.relay.usage import Tail
from llamaherd_gateway.relay.ways import Target, Way
from llamaherd_gateway.routing.presets import apply_preset
from llamaherd_gateway.routing.rules import apply_rules
from llamaherd_shared.errors import HerdError, Unavailable
from llamaherd_shared.events.request import RequestFinished
from llamaherd_shared.trace import trace_id_of

if TYPE_CHECKING:
    from llamaherd_gateway.relay.protocol import RelayProtocol

CLIENT_CLOSED: Final = 499
"""nginx's status for a client that left before any answer."""
NAME_TOLD: Final = 256
"""Characters of a model's name that an event keeps: clients may write anything there."""
_BOOT: Final = secrets.token_hex(6)
_BOOT_BYTES: Final = _BOOT.encode()
_numbers: Final = count(1)


class _Nobody:
    """Stands where uvicorn keeps an `asyncio.Event`: nobody waits on an exchange."""

    def set(self) -> None:
        pass


class Exchange:
    """uvicorn sees it as a request/response cycle: it reads and writes the attributes of the first group."""

    # What most exchanges never change stands in the class: setting it for each would cost microseconds.
    response_complete = False
    disconnected = False
    message_event: Final = _Nobody()
    more_body = False

    complete = False
    """Whether the whole request has arrived."""
    model = ""
    """The name of the model that serves it; until that is known, what the client wrote."""
    asked: Asked
    """Set once the body has been read."""
    waited_s = 0.0
    """For the model to be loaded."""
    has_loaded = False
    """Whether its model was not ready when it came."""
    queued_s = 0.0
    """For a slot."""
    position = 0
    """In the queue, on arrival; 0: it did not have to wait."""

    is_counted = False
    """Whether the key's limits have let it in."""

    _turn = False
    _body = b""
    _bytes_in = 0
    _known = False
    """Whether the model's name is one of ours: only those make subjects."""

    _pursuit: Pursuit | None = None
    _keeping: Keeping | None = None
    _connection: Connection | None = None
    _pool: Pool | None = None
    """Of the connection; set as long as the request is in flight."""
    _instance: Instance | None = None
    _repeated = False
    broken = 0
    """Fresh connections that broke before a first byte."""
    pushed_out = 0
    """Instances that were unloaded before a first byte."""
    _holds_slot = False
    _waits = False
    """In the queue for one."""

    _error_head: Head | None = None
    _error_body = b""
    _tail = Tail()
    """Of llama-server's answer. Until that has been asked, all exchanges share this one, which is never fed."""
    _end: tuple[str, int, str | None, float, int]

    _received_at = 0.0
    _received_ns = 0
    _first_at = 0.0

    def __init__(self, protocol: "RelayProtocol", judged: Judged, *, length: int, trace: bytes, began: float) -> None:
        """`length`: of the body as far as the client told it; `trace`: its `Traceparent`, empty without one."""
        self._protocol, self.relay, self._judged = protocol, protocol.relay, judged
        self.route, self.key, self.keep_alive = judged.route, judged.key, judged.keep_alive
        self._refusal = judged.refusal
        if length > self.relay.settings.max_body_bytes:
            self._refusal = self._refusal or self._too_large()
        self._number = next(_numbers)
        # Not secret, so not from the kernel: that would cost as much as parsing the request.
        trace_id = trace_id_of(trace.decode("latin-1")) if trace else None
        number = int(trace_id, 16) if trace_id is not None else getrandbits(128) or 1
        self._traceparent = b"00-%032x-%016x-01" % (number, getrandbits(64) or 1)
        self._parts: list[bytes] = []
        self._answer = Answer(judged.route.dialect, http_1_0=judged.http_1_0)
        self._began = self.heard_at = began
        """When client (before `complete`) or llama-server (after it) last sent anything."""

    @property
    def request_id(self) -> str:
        return f"{_BOOT}{self._number:08x}"

    @property
    def traceparent(self) -> str:
        """What llama-server was sent: the client's trace, or one of our own."""
        return self._traceparent.decode()

    @property
    def key_id(self) -> str:
        """Empty: it came without a key."""
        return self.key.key if self.key is not None else ""

    @property
    def party(self) -> str:
        """Who shares one place in a queue."""
        if self.key is not None:
            return self.key.key
        client = self._protocol.client
        return client[0] if client else ""

    @property
    def status(self) -> int:
        """Sent; 0 before the head."""
        return self._answer.status

    # From the client.

    def take_turn(self) -> None:
        """Every earlier request on this connection has been answered."""
        self._turn = True
        if self._refusal is not None:
            self.answer_problem(self._refusal)
        elif self.complete:
            self._begin()
        elif self._judged.expects_continue:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def take_whole(self, body: bytes) -> None:
        """It is its turn already, and this is all of its body."""
        self._turn = self.complete = True
        self._received_at = self._began
        self._bytes_in = len(body)
        self._parts.append(body)
        if self._refusal is not None:
            self.answer_problem(self._refusal)
        else:
            self._begin()

    def feed(self, body: bytes) -> None:
        """A piece of the request's body."""
        if self.response_complete or self._refusal is not None:
            return  # discarded while the connection lingers
        self._bytes_in += len(body)
        self.heard_at = time.monotonic()
        if self._bytes_in > self.relay.settings.max_body_bytes:
            self._parts = []
            self._refusal = self._too_large()
            if self._turn:
                self.answer_problem(self._refusal)
        else:
            self._parts.append(body)

    def end_of_request(self) -> None:
        self.complete = True
        self._received_at = self.heard_at = time.monotonic()
        if self._turn and not self.response_complete:
            self._begin()

    def client_gone(self) -> None:
        """The client has left: whatever is being done for it stops now."""
        if self.response_complete:
            return
        self.disconnected = True
        if self.relay.policy.of(self.model).drain_on_abort:
            self._leave_behind()
        self._release()
        self._record("cancelled", self.status or CLIENT_CLOSED, None)

    def _leave_behind(self) -> None:
        """Let llama-server's answer go on to its end, if there is one."""
        connection, pool = self._connection, self._pool
        if connection is not None and pool is not None:
            connection.hand_over(Leftover(self.relay, pool, self.model, holds_slot=self._holds_slot))
            self._connection, self._holds_slot = None, False

    def _too_large(self) -> Problem:
        limit = self.relay.settings.max_body_bytes
        return Problem(
            status=413, message=f"the request's body is larger than {limit} bytes (`gateway.max_body_bytes`)"
        )

    # Routing.

    def _begin(self) -> None:
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._received_ns = time.time_ns()
        relay, route = self.relay, self.route
        try:
            if self._judged.encoding:
                body = inflate(body, self._judged.encoding, limit=relay.settings.max_body_bytes)
            asked = self.asked = route.read(body, self._judged.headers)
            if route.memory is not None:
                asked = self.asked = relay.conversations.admit(asked, route.memory)
            self._body = body
            self.model = asked.model
            way = relay.way_of(asked.model)
            model = way.model if way is not None else relay.names.resolve(asked.model)
            if model is None or asked.action != "call" or asked.previous or asked.answer_id or self.has_limits:
                self._pursue(None)
                return
            self.use_model(model)
            target = self._find_target(way) if self.has_turn and route.prepare is None else None
            if target is None or not self._ask_at_once(target):
                self._pursue(None)
        except HerdError as error:
            self.answer_problem(problem_of(error))
        except Exception:
            # Up the stack is the HTTP parser, which would take this for a mistake of the client's and answer nothing.
            relay.log.exception("a request failed unexpectedly", request=self.request_id)
            self.answer_problem(Problem(status=500, message="the gateway failed; its log has the details"))

    def _find_target(self, way: Way | None) -> Target | None:
        """Who answers now; `None`: nobody yet."""
        if way is not None and self.asked.load is None:
            return way.target
        instance = self.relay.choose(self)
        return None if instance is None else self.target_at(instance)

    def target_at(self, instance: Instance) -> Target:
        """The instance that has been chosen, as this request finds it."""
        return self.relay.target_of(instance, self.asked.model, self.model)

    def _ask_at_once(self, target: Target) -> bool:
        """Over a connection that is open already; `False` when there is none."""
        pool = target.pool
        connection = pool.take()
        if connection is None:
            return False
        try:
            call = self.make_call(target)
        except Exception:
            pool.give(connection)
            raise
        self.send(connection, pool, call)
        return True

    def _pursue(self, lost: Instance | None) -> None:
        self._pursuit = Pursuit(self, lost)
        self._pursuit.start()

    def make_call(self, target: Target) -> Call:
        """What this instance will be asked. Raises `BadRequest` for what its model cannot do."""
        asked, route, facts = self.asked, self.route, target.facts
        if route.call is None:
            call = Call(path=self._judged.target, body=asked.body)
        else:
            call = route.call(asked, facts, self.turn())
        body, content_type = call.body, call.content_type
        if body is asked.body and self._judged.content_type:
            content_type = self._judged.content_type  # a form keeps its boundary
        if content_type.startswith(b"application/json"):
            if facts.preset is not None:
                body = apply_preset(facts, body)
            if route.generates and target.rules:
                body = apply_rules(target.rules, body)
        if body is not call.body or content_type != call.content_type:
            call = msgspec.structs.replace(call, body=body, content_type=content_type)
        instance = target.instance
        return address(call, instance, method=route.method) if instance.router_generation else call

    def turn(self) -> Turn:
        return Turn(request_id=self.request_id, received_ns=self._received_ns, load_ns=int(self.waited_s * 1e9))

    def send(self, connection: Connection, pool: Pool, call: Call) -> None:
        """Over a connection that is ours from now on."""
        if self.response_complete:
            # Its client has left while this one was opened.
            connection.abandon()
            return
        self._pursuit = None
        self._connection, self._instance = connection, pool.instance
        self.heard_at = time.monotonic()
        self._pool = pool
        pool.in_flight += 1
        if call.translation is not None:
            self._answer.translate(call.translation, call.keeper)
        end = render_request_end(self._judged.forwarded, call.content_type, self._traceparent, len(call.body))
        receiver = hear(self, pool.instance) if pool.instance.router_generation else self
        connection.send(receiver, pool.request_start(self.route.method, call.path) + end, call.body)
        # From here on there is time until llama-server answers.
        self._tail = Tail()
        self.relay.spare_moment()
        if self._protocol.flow.write_paused:
            connection.pause()

    # Its place in the model's queue (`admission.Ticket`).

    def use_model(self, model: str) -> None:
        """The model that will answer: a place in its queue, instead of any other one.

        Raises `NotAllowed`, `NoKey`, `QueueIsFull`.
        """
        if self._known:
            self._leave_queue()
            self._leave_model(None, time.monotonic())
        else:
            self.relay.access.check_model(self.key, model, self.asked.model)
        self.model, self._known = model, True
        if not self.route.passive:
            self.relay.residency.begin(model)
        if self.asked.action == "call" and self.route.generates:
            self._holds_slot = self.relay.enter_queue(self)
            if not self._holds_slot:
                self._waits = True
                self.position = self.position or self.relay.position_of(self)

    def admitted(self) -> None:
        self._holds_slot, self._waits = True, False
        if self._pursuit is not None:
            self._pursuit.wake()

    @property
    def has_turn(self) -> bool:
        """Whether it may go to an instance."""
        return self._holds_slot or not self.route.generates

    @property
    def has_limits(self) -> bool:
        return self.key is not None and self.key.limits.any

    @property
    def has_model(self) -> bool:
        """Whether its model is known to exist."""
        return self._known

    @property
    def text(self) -> bytes:
        """Of the conversation: its beginning tells which one goes on."""
        return self.asked.text or self._body

    def _leave_model(self, keep_alive_s: float | None, now: float) -> None:
        """Looking at a model is no use of it."""
        if self._known and not self.route.passive:
            self.relay.residency.end(self.model, keep_alive_s, now)

    def _leave_queue(self) -> None:
        if self._holds_slot:
            self._holds_slot = False
            self.relay.admission.leave(self.model)
        elif self._waits:
            self._waits = False
            self.relay.admission.withdraw(self.model, self)

    # From llama-server (`upstream.Receiver`).

    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        if self.response_complete:
            return
        self.heard_at = time.monotonic()
        out: list[bytes] = []
        answer = self._answer
        if head is not None:
            if head.status >= 400:
                self._error_head = head
            elif end and answer.passes_on(head):
                self._pass_on(head, body)
                return
            else:
                answer.take_head(head, self._own_headers, out)
        if self._error_head is not None:
            self._take_error(self._error_head, body, end)
            return
        if body and not self._first_at:
            self._first_at = self.heard_at
        self._tail.feed(body)
        try:
            self._translate(body, end, out)
        except HerdError as error:
            self.answer_problem(problem_of(error))
        except ValueError as error:
            self.answer_problem(Problem(status=502, message=f"llama-server's answer makes no sense: {error}"))
        except Exception:
            self.relay.log.exception("an answer could not be translated", request=self.request_id)
            self.answer_problem(Problem(status=500, message="the gateway failed; its log has the details"))

    def _pass_on(self, head: Head, body: bytes) -> None:
        """All of an answer that goes to the client as it came: first of all, what it means to us is found out later."""
        # A client that does not keep up has nothing to pause any more.
        self._connection = None
        self._write(self._answer.pass_on(head, body, self._own_headers()))
        self._first_at = self.heard_at if body else 0.0
        self._tail.feed(body)
        self._leave_instance()
        self._finish("ok", None)

    def _translate(self, body: bytes, end: bool, out: list[bytes]) -> None:
        """What came becomes what is sent. Raises whatever a translation raises."""
        now_ns = time.time_ns()
        if body:
            self._answer.take_body(body, now_ns, out)
        if end:
            self._leave_instance()
            turn = self._answer.turn(now_ns)
            if turn is None:
                self._answer.take_end(self._own_headers, now_ns, out)
                self._write(b"".join(out))
                self._finish("ok", None)
                return
            self._leave_queue()
            self._keeping = Keeping(self, turn)
        if out:
            self._write(b"".join(out))

    def tell_end(self, now_ns: int, *, kept: bool) -> None:
        """The answer has been kept, or cannot be. Raises whatever a translation raises."""
        if self.response_complete:
            return
        if not kept and self._answer.keeper is not None:
            self._answer.keeper.not_kept()
        out: list[bytes] = []
        self._answer.take_end(self._own_headers, now_ns, out)
        self._write(b"".join(out))
        self._finish("ok", None)

    def upstream_lost(self, *, before_first_byte: bool, reused: bool) -> None:
        instance = self._instance
        self._leave_instance()
        if self.response_complete or instance is None:
            return
        if not before_first_byte or self._first_at:
            text = f"the llama-server {instance.name} ended in the middle of its answer"
            self.answer_problem(Problem(status=502, message=text, code="upstream_lost"))
        elif reused and not self._repeated:
            # It closed an idle connection just as we used it: nothing has happened, ask again.
            # Unless it is gone, that is: then somebody else is asked.
            self._repeated = True
            current = self.relay.choose(self)
            self._pursue(None if current else instance)
        else:
            self.broken += 1
            self.relay.shun(instance)
            if self.broken >= ATTEMPTS:
                text = f"the llama-server {instance.name} closed the connection without an answer, twice"
                self.answer_problem(Problem(status=502, message=text, code="upstream_lost"))
            else:
                self._pursue(instance)

    def giver_of(self, answer_id: str) -> Instance | None:
        """The instance that answers, if that answer has this `id`."""
        return self._instance if not self.response_complete and self._tail.names(answer_id) else None

    def pause(self) -> None:
        """The client does not keep up."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    # The answer.

    def _own_headers(self) -> bytes:
        more = self.route.dialect.headers
        return b"%bx-request-id: %b%08x\r\ntraceparent: %b\r\n%b%b%b\r\n" % (
            self.relay.date_header,
            _BOOT_BYTES,
            self._number,
            self._traceparent,
            self._judged.cors,
            b"" if more is None else b"".join(b"%b: %b\r\n" % header for header in more(self.request_id)),
            b"" if self.keep_alive else b"connection: close\r\n",
        )

    @property
    def tells_progress(self) -> bool:
        """Only in a stream of events that is passed on as it comes: others have no place for it."""
        return self._judged.wants_progress and self.asked.stream and self.route.dialect.streams_events

    def tell(self, text: str) -> None:
        """How the waiting goes, as a comment of the stream that the client asked for."""
        out: list[bytes] = []
        if not self.status:
            self._answer.open_stream(self._own_headers(), out)
        self._answer.add_comment(text, out)
        self._write(b"".join(out))

    def answer_whole(self, body: bytes, content_type: bytes = b"application/json") -> None:
        """The gateway's own answer."""
        out: list[bytes] = []
        self._release()
        self._answer.add_whole(200, body, content_type, self._own_headers(), out)
        self._write(b"".join(out))
        self._finish("ok", None)

    def _take_error(self, head: Head, body: bytes, end: bool) -> None:
        """llama-server refuses: read what it says, then say it in the client's dialect."""
        self._error_body += body
        if not end and len(self._error_body) < ERROR_BODY_BYTES:
            return
        if end:
            self._leave_instance()
        instance = self._instance.name if self._instance is not None else "llama-server"
        self.answer_problem(read_error(head.status, self._error_body, instance))

    def answer_problem(self, problem: Problem) -> None:
        """End the exchange with an error: as an answer, as a stream's last event, or by cutting the answer off."""
        if self.response_complete:
            return
        self._release()
        out: list[bytes] = []
        if not self.status:
            if not self.complete:
                self.keep_alive = False
            self._answer.add_problem(problem, self.request_id, self._own_headers(), out)
        elif self._answer.streams:
            self.keep_alive = False
            self._answer.end_with(problem, self.request_id, time.time_ns(), out)
        else:
            # A length was promised, or chunks: only a broken connection says that this is not all.
            self._protocol.transport.abort()
            self._record("error", self.status, problem.message)
            return
        self._write(b"".join(out))
        self._finish("error", problem.message)

    def _write(self, out: bytes) -> None:
        transport = self._protocol.transport
        if out and not transport.is_closing():
            transport.write(out)

    # The end.

    def _release(self) -> None:
        """Stop whatever is under way for this request."""
        self._leave_queue()
        if self._pursuit is not None:
            self._pursuit.stop()
            self._pursuit = None
        if self._keeping is not None:
            self._keeping.stop()
            self._keeping = None
        if self._connection is not None:
            self._connection.abandon()
        self._leave_instance()

    def _leave_instance(self) -> None:
        if self._pool is not None:
            self._connection = None
            self._pool.in_flight -= 1
            self._pool = None

    def _finish(self, outcome: str, error: str | None) -> None:
        self._record(outcome, self.status, error)
        self._protocol.exchange_finished(self)

    def _record(self, outcome: str, status: int, error: str | None) -> None:
        """The one place where an exchange becomes complete."""
        self.response_complete = True
        self._parts = []
        self._body = b""
        if self._holds_slot or self._waits:
            self._leave_queue()
        now = time.monotonic()
        if self._known:
            only_if_loaded = self.asked.keeps_what_it_loads and not self.has_loaded
            self._leave_model(None if only_if_loaded else self.asked.keep_alive_s, now)
        if self.is_counted and self.key is not None:
            self.relay.access.limiter.finish(self.key, self._spent(outcome), now)
        self._end = (outcome, status, error, now, time.time_ns())
        self.relay.record(self)

    def _spent(self, outcome: str) -> int | None:
        """Tokens that a limit counts; `None`: llama-server worked on it, and did not come to say on how many."""
        usage = self._tail.usage()
        if usage.prompt_tokens is not None or usage.completion_tokens is not None:
            return (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
        refused = self._error_head is not None or (outcome == "error" and not self._first_at)
        return 0 if refused or self._instance is None or not self.route.generates else None

    def event(self) -> RequestFinished:
        """The fact about this exchange, once it is complete."""
        outcome, status, error, now, at_ns = self._end
        usage = self._tail.usage()
        if outcome == "ok" and self._answer.streams and (error := self._tail.error()) is not None:
            outcome = "error"
        asked = getattr(self, "asked", None)
        return RequestFinished(
            request_id=self.request_id,
            at_ns=at_ns,
            node=self.relay.node,
            model=self.model[:NAME_TOLD],
            instance=self._instance.name if self._instance is not None else "",
            route=self._judged.path,
            status=status,
            outcome=outcome,
            streamed=asked.stream if asked is not None else False,
            error=error,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            prompt_ms=usage.prompt_ms,
            completion_ms=usage.completion_ms,
            first_token_ms=(self._first_at - self._received_at) * 1e3 if self._first_at else None,
            waited_ms=self.waited_s * 1e3,
            queued_ms=self.queued_s * 1e3,
            queue_position=self.position,
            total_ms=(now - self._began) * 1e3,
            bytes_in=self._bytes_in,
            bytes_out=self._answer.bytes_out,
            trace_id=self._traceparent[3:35].decode(),
            key_id=self.key_id,
        )

    @property
    def subject_model(self) -> str:
        """The model in the event's subject. A name nobody knows makes none: clients could make up millions."""
        return self.model if self._known else ""

    # Time.

    def check(self, now: float) -> None:
        """Called about once a second: end what has been silent for too long."""
        settings = self.relay.settings
        silent_s = now - self.heard_at
        if not self.complete:
            if self._turn and silent_s > settings.receive_timeout_s:
                self.answer_problem(late_body(settings.receive_timeout_s))
        elif (
            self._connection is not None
            and silent_s > settings.answer_timeout_s
            and not self._protocol.flow.write_paused
        ):
            text = f"the llama-server was silent for {settings.answer_timeout_s:g} s (`gateway.answer_timeout_s`)"
            self.answer_problem(Problem(status=504, message=text, code="upstream_timeout"))

    def stop(self) -> None:
        """The gateway stops and has waited long enough."""
        error = Unavailable("the gateway is being stopped", retry_after_s=2)
        self.answer_problem(problem_of(error))
