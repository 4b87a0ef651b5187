"""Settings of the metrics service: the `metrics` mapping of `llamaherd.yaml`, or `LLAMAHERD_METRICS_*`."""

from typing import Annotated, Final

import msgspec

_HOUR_S: Final = 3600
_DAY_S: Final = 24 * _HOUR_S

Seconds = Annotated[int, msgspec.Meta(ge=60)]


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is measured, and how long it is kept. Ages are counted from the newest sample."""

    collect: bool = True
    """Measure this host. Every host needs one collector."""
    record: bool = True
    """Keep the samples of all hosts and answer history queries. A herd needs one recorder."""
    interval_s: Annotated[float, msgspec.Meta(ge=0.2, le=60)] = 1.0
    """Time from one sample to the next."""
    gpu: bool = True
    """Read NVIDIA GPUs through NVML where there are any."""
    raw_keep_s: Seconds = 2 * _HOUR_S
    """Samples as they came. One that arrives later than this is too late to be counted."""
    keep_10s_s: Seconds = 2 * _DAY_S
    """Roll-ups of 10 s."""
    keep_60s_s: Seconds = 14 * _DAY_S
    """Roll-ups of one minute."""
    keep_600s_s: Seconds = 90 * _DAY_S
    """Roll-ups of ten minutes."""
