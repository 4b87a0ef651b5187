"""Starts, watches and stops llama-server processes on one host."""

from llamaherd_shared import __version__

__all__ = ["__version__"]
