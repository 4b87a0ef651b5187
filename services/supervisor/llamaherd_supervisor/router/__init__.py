"""llama-server as a router: one process that serves several models, each in a process below it."""
