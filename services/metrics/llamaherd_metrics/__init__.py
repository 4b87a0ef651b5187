"""Host, process and GPU samples once a second, kept with their roll-ups; see README.md."""
