"""Gateways that tell each other which models are in use."""

from llamaherd_gateway.routing.residency import Residency


def two_gateways(at_s: float = 0.0) -> tuple[Residency, Residency]:
    """Gateways that know of each other."""
    here, there = Residency(), Residency()
    here.hear("1", [], at_s)
    there.hear("0", [], at_s)
    return here, there


def exchange(now_s: float, *gateways: Residency) -> None:
    """Everybody tells everybody what there is to tell."""
    told = [gateway.tell(now_s) for gateway in gateways]
    for number, uses in enumerate(told):
        for other, gateway in enumerate(gateways):
            if other != number and uses is not None:
                gateway.hear(str(number), uses, now_s)
