"""Which model and which instance answers, when, and with which parameters."""
