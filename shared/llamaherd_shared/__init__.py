"""The contract between llamaherd's services, and the plumbing they share. Imports no service."""

__version__ = "0.1.0"
