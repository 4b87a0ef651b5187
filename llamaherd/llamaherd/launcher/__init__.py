"""Runs a whole herd on this machine: an embedded nats-server and one of each service. Everything here is shell."""
