"""schemathesis on a running API: what its OpenAPI document says may be asked, and what it says may not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

SEED: Final = "1"


def fuzz(
    document: str, folder: Path, *options: str, checks: str = "not_a_server_error", words: Sequence[str] = ()
) -> None:
    """Fails with what schemathesis says, or when an answer takes ten seconds; 501 and 503 may be honest answers.

    `document`: its URL. `words`: half of all texts are one of these, so that some requests get somewhere.
    """
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("no schemathesis")
    (folder / "schemathesis.toml").write_text(_settings(words))
    done = subprocess.run(
        [
            program, "--config-file", folder / "schemathesis.toml", "run", document,
            "--checks", checks, "--seed", SEED, "--request-timeout", "10", "--generation-database", "none",
            "--warnings", "off", "--no-color", *options,
        ],
        capture_output=True, text=True, timeout=90, cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def _settings(words: Sequence[str]) -> str:
    text = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", 501, 503]\n'
    if not words:
        return text
    bound = '[generation.dictionaries]\nstring = { dictionary = "words", probability = 0.5 }\n'
    return f"{text}[dictionaries.words]\nvalues = {json.dumps(list(words))}\n{bound}"
