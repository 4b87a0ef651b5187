"""The command line of llamaherd and the launcher that runs a herd on one machine."""

from typing import Final

__version__: Final = "0.1.0"
