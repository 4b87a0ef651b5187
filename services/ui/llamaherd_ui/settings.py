"""Settings of the ui: the mapping `ui:` of `llamaherd.yaml` and `LLAMAHERD_UI_*`."""

import msgspec

from llamaherd_shared.addresses import is_loopback
from llamaherd_shared.settings import SettingsError


class UiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the ui listens and what it keeps at hand."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs `insecure`: there are no users yet."""
    port: int = 8081
    """0 takes a free one."""
    insecure: bool = False
    """Listen on more than loopback although anybody who reaches the port may load and unload models."""
    allowed_hosts: list[str] = []
    """Further names browsers may use in the address; a leading `*.` stands for every subdomain."""
    gateway_url: str | None = None
    """Where clients send their requests, ending in `/v1`; shown on the page. Unset: the page does not say."""
    max_streams: int = 256
    """Live streams open at once; one more is answered with 503."""
    comment_interval_s: float = 15.0
    """Silence after which a stream says it is alive: below the 60 s of common proxies."""
    replay_limit: int = 10_000
    """Missed facts or requests (each) a stream sends again; a client further behind is told to reload.

    Of log lines at most 1000 missed packs are sent again.
    """
    recent_bytes: int = 2 * 2**20
    """Memory for the newest messages of each topic, from which streams are fed."""
    stop_timeout_s: float = 5.0
    """How long requests may take to finish when the ui stops."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise SettingsError(f"setting `ui.port`: {self.port} is no port (0 to 65535)")
        for name in ("max_streams", "comment_interval_s", "replay_limit", "recent_bytes", "stop_timeout_s"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"setting `ui.{name}`: must be greater than 0")
        if not self.insecure and not is_loopback(self.host):
            raise SettingsError(
                f"setting `ui.host`: {self.host} lets others load and unload models, and there are no users yet: "
                "use 127.0.0.1 behind a proxy that asks who it is, or set `ui.insecure: true`"
            )
