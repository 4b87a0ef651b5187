"""What each API key may use per minute and at once, over all gateways together.

One gateway alone counts exactly. Several tell each other what they have counted (`GatewayUsage`), ten times a second
while there is something to tell, and what one has not told yet is bounded: of the room `x` that a limit has left, as
far as everybody knows, each of `n` gateways may use `x / 2n` untold, and one of them, the key's leader, the rest. Who
leads follows from what was told: of the gateways that are being asked for the key, the one that has used least. A
gateway that begins to be asked says so first and leads only once everybody must have heard it.

So the untold shares never sum to more than there is; and because one may tell, and take anew, while another's share
is from before, each keeps free what the others could have taken in the last moments. Where no gateway but one is asked
for a key, that one leads and has the whole limit. A request that finds the room in another gateway's share, or taken by
a request there that may have ended a moment ago, is refused with `hold_s`: it is worth holding for as long.
"""

from math import ceil
from typing import Final

import msgspec

from llamaherd_gateway.access.keys import Key
from llamaherd_gateway.access.meters import Counted, Meter, Peer, meters_of
from llamaherd_gateway.access.windows import WINDOW_S, free_at
from llamaherd_gateway.problems import Problem
from llamaherd_shared.api_key import PREFIX
from llamaherd_shared.events.usage import GatewayUsage, KeyUsage

GOSSIP_S: Final = 0.1
"""How often `Limiter.gossip` is to be called."""
BEAT_S: Final = 2.0
"""So often a gateway says that it lives, and says again what may have been lost."""
AGAIN_S: Final = 2 * WINDOW_S
"""Keys that were not asked for since have nothing that counts, unless a request used more than the limit at once."""
FORGET_S: Final = 6.0
"""A gateway that was silent for so long is gone, and its requests in flight with it; what it used still counts."""
ACTIVE_S: Final = 1.0
"""A gateway that was not asked for a key for so long has no use for a share of it."""
SETTLE_S: Final = 0.25
"""After this, everybody has heard what was told, and has told what it had taken until then."""
JOIN_S: Final = 0.5
"""A new gateway first hears which others there are."""
SHARED_S: Final = 2.0
"""How long a request waits for room that may be in another gateway's share."""
SLACK_RATIO: Final = 0.08
"""All gateways together may go over a limit by this part of it, so that requests near the limit need not be held."""
IN_FLIGHT_RETRY_S: Final = 1.0
"""Nobody knows when a request ends."""


class Refusal(msgspec.Struct, frozen=True):
    """The request has to wait."""

    retry_after_s: float
    sentence: str
    hold_s: float = 0.0
    """How long it may help to ask again, every `GOSSIP_S`: the limit has room as far as other gateways leave it."""


def problem_of_refusal(refusal: Refusal) -> Problem:
    """The answer to a request that was not let in."""
    # Whole seconds, as the header has them, and never too few: who came back early would be refused again.
    wait_s = max(1, ceil(refusal.retry_after_s))
    return Problem(status=429, message=refusal.sentence, code="rate_limit_exceeded", retry_after_s=wait_s)


class Limiter:
    """The limits of all keys on one gateway. Every `now_s` is of one clock that never goes back."""

    def __init__(self, gateway: str, now_s: float) -> None:
        """`gateway` names this process among all gateways."""
        self._gateway, self._started_s = gateway, now_s
        self._keys: dict[str, Counted] = {}
        self._heard_s: dict[str, float] = {}
        self._untold: set[str] = set()
        self._tell_all = True
        self._gossiped_s = self._beaten_s = float("-inf")

    # Requests.

    def admit(self, key: Key, now_s: float) -> Refusal | None:
        """Let one request of this key in (`None`), to be ended by `finish`; or refuse it."""
        if not key.limits.any:
            return None
        counted = self._counted(key.key)
        counted.limits = key.limits
        if now_s - counted.asked_s > ACTIVE_S:
            counted.announced_s = None
        counted.asked += 1
        counted.asked_s = now_s
        self._untold.add(key.key)
        meters = meters_of(counted, self._living(now_s), now_s)
        refusals = [refusal for meter in meters if (refusal := self._refuse(key, counted, meter, now_s))]
        if refusals:
            return max(refusals, key=lambda refusal: (-refusal.hold_s, refusal.retry_after_s))
        counted.requests += 1
        counted.in_flight += 1
        counted.recent_requests.add(1, now_s)
        return None

    def finish(self, key: Key, tokens: int | None, now_s: float) -> None:
        """A request that was let in has ended, with so many tokens of prompt and answer.

        `None`: it used some, and ended before anybody said how many. It counts as much as the last ones, or whoever
        leaves before the end of an answer would have it for nothing.
        """
        counted = self._keys.get(key.key)
        if not key.limits.any or counted is None or not counted.in_flight:
            return
        counted.in_flight -= 1
        tokens = counted.learn(tokens)
        if key.limits.tokens_per_minute:
            counted.recent_tokens.add(tokens, now_s, key.limits.tokens_per_minute)
        self._untold.add(key.key)

    # Other gateways.

    def gossip(self, now_s: float) -> GatewayUsage | None:
        """What the others have to be told now; `None`: nothing. To be called every `GOSSIP_S`."""
        if now_s - self._gossiped_s > FORGET_S / 2:
            self._tell_all = True  # we were stuck: they may have forgotten us
        self._gossiped_s = now_s
        again = now_s - self._beaten_s >= BEAT_S or self._tell_all
        if not (again or self._untold):
            return None
        ids = self._untold
        if again:
            self._beaten_s = now_s
            self._forget(now_s)
            ids = {id_ for id_, counted in self._keys.items() if counted.in_flight or now_s - counted.asked_s < AGAIN_S}
            ids |= self._untold
        self._untold = set()
        self._tell_all = False
        return GatewayUsage(self._gateway, [self._tell(id_, self._keys[id_], now_s) for id_ in ids])

    def hear(self, usage: GatewayUsage, now_s: float) -> None:
        """Take what another gateway told. Our own messages come back as well and are passed over."""
        if usage.gateway == self._gateway:
            return
        if usage.gateway not in self._living(now_s):
            self._tell_all = True  # it is new here, or was away: it knows nothing of us
        self._heard_s[usage.gateway] = now_s
        for said in usage.keys:
            counted = self._counted(said.key)
            self._note_all(counted, now_s)
            self._take(counted, usage.gateway, said, now_s)

    def _take(self, counted: Counted, gateway: str, said: KeyUsage, now_s: float) -> None:
        peer = counted.peers.get(gateway)
        if peer is None:
            peer = counted.peers[gateway] = Peer(said, now_s)
            requests, tokens = said.recent_requests, said.recent_tokens
        else:
            requests, tokens = said.requests - peer.said.requests, said.tokens - peer.said.tokens
            if said.asked != peer.said.asked:
                peer.asked_s = now_s
            peer.said = said
        if said.tokens and not counted.tokens:
            counted.expected_tokens = said.tokens / max(1, said.requests - said.in_flight)
        peer.requests.add(requests, now_s)
        peer.tokens.add(tokens, now_s, counted.limits.tokens_per_minute)

    def _tell(self, id_: str, counted: Counted, now_s: float) -> KeyUsage:
        self._note_all(counted, now_s)
        if counted.announced_s is None and now_s - counted.asked_s <= ACTIVE_S:
            counted.announced_s = now_s
        counted.told = KeyUsage(
            id_,
            counted.asked,
            counted.requests,
            counted.tokens,
            int(counted.recent_requests.total(now_s)),
            int(counted.recent_tokens.total(now_s)),
            counted.held_tokens,
            counted.in_flight,
        )
        return counted.told

    def _forget(self, now_s: float) -> None:
        """Drop what gateways used that are gone for so long that nothing of it counts any more."""
        for gateway in [name for name, heard_s in self._heard_s.items() if now_s - heard_s > 20 * FORGET_S]:
            del self._heard_s[gateway]
            for counted in self._keys.values():
                counted.peers.pop(gateway, None)

    def _living(self, now_s: float) -> set[str]:
        """The other gateways."""
        return {name for name, heard_s in self._heard_s.items() if now_s - heard_s <= FORGET_S}

    # Deciding.

    def _counted(self, key: str) -> Counted:
        counted = self._keys.get(key)
        if counted is None:
            counted = self._keys[key] = Counted(key)
        return counted

    def _refuse(self, key: Key, counted: Counted, meter: Meter, now_s: float) -> Refusal | None:
        over = meter.used + meter.others + meter.cost - meter.limit
        if over > 0:
            sentence = f"the API key {PREFIX}{key.key} may use {meter.limit} {meter.name}"
            free_s = free_at(meter.windows, over)
            wait_s = IN_FLIGHT_RETRY_S if free_s is None else max(free_s - now_s, GOSSIP_S)
            hold_s = SETTLE_S if over <= meter.passing else 0.0
            return Refusal(wait_s, f"{sentence}; try again in {wait_s:.3g} s", hold_s)
        if self._may_take(counted, meter, now_s):
            return None
        text = f"other gateways may be using what is left of the {meter.limit} {meter.name} of {PREFIX}{key.key}"
        return Refusal(GOSSIP_S, f"{text}; try again at once", SHARED_S)

    def _may_take(self, counted: Counted, meter: Meter, now_s: float) -> bool:
        """Whether the limit's room is ours to take."""
        if now_s - self._started_s < JOIN_S:
            return False
        gateways = 1 + len(self._living(now_s))
        if gateways == 1:
            return True
        wanted = meter.untold + meter.cost
        if wanted <= SLACK_RATIO * meter.limit / gateways:
            return True
        leads = self._leads(counted, now_s)
        if leads and meter.room == meter.limit and not meter.untold:
            return True  # nothing is used anywhere: large requests would wait for ever otherwise
        mine, theirs = self._split(counted, meter, gateways, leads, now_s)
        return wanted <= mine and wanted <= meter.room - self._note(counted, meter, theirs, now_s)

    def _split(self, counted: Counted, meter: Meter, gateways: int, leads: bool, now_s: float) -> tuple[float, float]:
        """(what we may take untold, what the others may)"""
        share = meter.room // (2 * gateways)
        if leads:
            return meter.room - (gateways - 1) * share, (gateways - 1) * share
        others_lead = bool(self._asked_peers(counted, now_s))
        return share, meter.room - share if others_lead else (gateways - 1) * share

    def _note_all(self, counted: Counted, now_s: float) -> None:
        """Before what everybody knows changes: remember what the others could take of it until now."""
        living = self._living(now_s)
        if not living:
            return
        leads = self._leads(counted, now_s)
        for meter in meters_of(counted, living, now_s):
            self._note(counted, meter, self._split(counted, meter, 1 + len(living), leads, now_s)[1], now_s)

    def _note(self, counted: Counted, meter: Meter, theirs: float, now_s: float) -> float:
        """The most that the others could have taken in the last moments and not told yet."""
        slot = int(now_s / GOSSIP_S)
        kept = [(at, most) for at, most in counted.reserved.get(meter.name, ()) if at >= slot - 2]
        if kept and kept[-1][0] == slot:
            theirs = max(theirs, kept.pop()[1])
        kept.append((slot, theirs))
        counted.reserved[meter.name] = kept
        return max(most for _, most in kept)

    def _leads(self, counted: Counted, now_s: float) -> bool:
        """Whether this gateway may take what is in nobody's share."""
        if counted.announced_s is None or now_s - counted.announced_s < SETTLE_S or now_s - counted.asked_s > ACTIVE_S:
            return False
        # In steps, so that the lead does not change with every request.
        step = max(1, counted.limits.requests_per_minute // 20)
        mine = (counted.told.recent_requests // step, self._gateway)
        return all(mine < (peer.said.recent_requests // step, name) for name, peer in self._asked_peers(counted, now_s))

    def _asked_peers(self, counted: Counted, now_s: float) -> list[tuple[str, Peer]]:
        """Other gateways that have use for this key: longer than they think so themselves, never shorter."""
        living = self._living(now_s)
        return [
            (name, peer)
            for name, peer in counted.peers.items()
            if name in living and now_s - peer.asked_s <= ACTIVE_S + SETTLE_S
        ]
