"""Which instance has a conversation's beginning in its KV cache: bytes of the request, remembered by their hashes.

Only asked when a model has several ready instances. A request's text is cut into blocks; each block's hash covers
everything before it too, so two requests share as many hashes as they share blocks from the beginning on.
"""

from collections import OrderedDict
from hashlib import blake2b
from typing import Final

from llamaherd_gateway.projection import InstanceKey

BLOCK_BYTES: Final = 256
"""About 60 tokens of English: less of a common beginning is not worth a busier instance."""
BLOCKS: Final = 512
"""Of one request: the first 128 KiB decide."""
REMEMBERED: Final = 65_536
"""Hashes kept, the oldest forgotten first: about 10 MB."""


class Affinity:
    """The memory of what was sent where."""

    def __init__(self) -> None:
        self._places: OrderedDict[bytes, InstanceKey] = OrderedDict()

    def find(self, blocks: list[bytes]) -> dict[InstanceKey, int]:
        """How many blocks from the beginning on each instance was the last to see."""
        found: dict[InstanceKey, int] = {}
        for count, block in enumerate(blocks, 1):
            place = self._places.get(block)
            if place is None:
                break
            found[place] = count
        return found

    def note(self, blocks: list[bytes], instance: InstanceKey) -> None:
        """These blocks are in this instance's cache now."""
        for block in blocks:
            self._places[block] = instance
            self._places.move_to_end(block)
        while len(self._places) > REMEMBERED:
            self._places.popitem(last=False)


def blocks_of(text: bytes) -> list[bytes]:
    """Hashes of the text's beginnings, shortest first; a rest shorter than a block does not count."""
    digest = blake2b(digest_size=16)
    hashes = []
    for start in range(0, min(len(text), BLOCKS * BLOCK_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        digest.update(text[start : start + BLOCK_BYTES])
        hashes.append(digest.copy().digest())
    return hashes
