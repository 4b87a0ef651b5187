"""Every log line of the herd, kept and searchable; see README.md."""
