"""REST, live stream and web app: the herd for browsers and for the CLI."""
