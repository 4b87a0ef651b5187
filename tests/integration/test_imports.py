"""What a service loads, it carries in memory for as long as it runs."""

import subprocess
import sys

import pytest

HEAVY = ("rich", "numpy", "opentelemetry.sdk", "pydantic")


@pytest.mark.parametrize("service", ["gateway", "supervisor", "metrics", "logs", "ui"])
def test_a_service_does_without_libraries_that_it_has_no_use_for(service: str) -> None:
    code = f"import sys, llamaherd_{service}.app; print(*(name for name in {HEAVY} if name in sys.modules))"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert loaded.stdout.split() == []
