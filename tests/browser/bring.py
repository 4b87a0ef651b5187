"""Bringing the herd into the state a test begins with."""

import httpx

from harness.deadline import wait_until
from harness.herd import Herd


def state_of(herd: Herd, model: str) -> str:
    return str(herd.instance(model).get("state", "stopped"))


def bring(herd: Herd, model: str, state: str) -> None:
    """Load or unload, and wait for it."""
    verb = {"ready": "load", "stopped": "unload"}[state]
    if state_of(herd, model) != state:
        httpx.post(f"{herd.ui_url}/api/v1/models/{model}/{verb}").raise_for_status()
    wait_until(lambda: state_of(herd, model) == state, within_s=30, what=f"{model} is {state}")
