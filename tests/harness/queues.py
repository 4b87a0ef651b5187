"""Requests in the gateway's queues, without a gateway."""

from llamaherd_gateway.routing.admission import Admission


class Request:
    """Writes itself into `log` when its turn has come."""

    def __init__(self, party: str, number: int, log: "list[Request]") -> None:
        self.party, self.number, self._log = party, number, log

    def admitted(self) -> None:
        self._log.append(self)


def queued(*parties: str, capacity: int = 1, limit: int = 100) -> tuple[Admission, list[Request], list[Request]]:
    """One request per entry, asked for in this order; (queues, requests, those that were admitted)."""
    admission = Admission(limit)
    log: list[Request] = []
    admission.set_capacity({"m": capacity})
    requests = [Request(party, number, log) for number, party in enumerate(parties)]
    for request in requests:
        if admission.enter("m", request):
            log.append(request)
    return admission, requests, log


def drained(admission: Admission, log: list[Request]) -> list[str]:
    """The order in which all of them get their turn."""
    for _ in range(1000):
        if not admission.waiting("m"):
            break
        admission.leave("m")
    return [f"{request.party}{request.number}" for request in log]
