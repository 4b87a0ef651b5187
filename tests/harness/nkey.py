"""A public key for nats-server's configuration."""

import nkeys


def make_public_nkey() -> str:
    """The same each time: who holds its seed is no test's business."""
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    key: str = nkeys.from_seed(seed).public_key.decode()
    return key
