# /// script
# requires-python = ">=3.11"
# dependencies = ["pyyaml>=6"]
# ///
"""Ask a running cria every question of `expected.yaml` over the OpenAI API.

    uv run demo/check.py --base-url http://127.0.0.1:8080/v1

Exit status 1 when an answer lacks an expected word and is not a known miss. With `--verbose` every answer is printed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from corpus import Expectation, load_expectations

ANSWER_TIMEOUT_S = 60


def main() -> int:
    parser = argparse.ArgumentParser(description="Check a running cria against expected.yaml.")
    parser.add_argument("--base-url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--model", default="cria")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    expectations = load_expectations(Path(__file__).parent / "expected.yaml")
    met = failed = 0
    for expected in expectations:
        answer = ask(arguments.base_url, arguments.model, expected)
        missing = expected.missing_from(answer)
        met += not missing
        failed += bool(missing) and not expected.known_miss
        if missing or arguments.verbose:
            print(f"{'missed ' + str(missing) if missing else 'ok'}: {expected.question!r} -> {answer!r}")
    print(f"{met} of {len(expectations)} expectations met, {failed} unexpectedly missed")
    return 1 if failed else 0


def ask(base_url: str, model: str, expected: Expectation) -> str:
    """The answer to the expected question, after the earlier ones in the same chat."""
    messages = [{"role": "system", "content": expected.system}] if expected.system else []
    answer = ""
    for question in (*expected.earlier, expected.question):
        messages.append({"role": "user", "content": question})
        answer = complete(base_url, model, messages)
        messages.append({"role": "assistant", "content": answer})
    return answer


def complete(base_url: str, model: str, messages: list[dict[str, str]]) -> str:
    body = json.dumps({"model": model, "messages": messages, "temperature": 0, "max_tokens": 256})
    request = Request(f"{base_url}/chat/completions", body.encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=ANSWER_TIMEOUT_S) as response:
        completion: dict[str, Any] = json.load(response)
    content: str = completion["choices"][0]["message"]["content"]
    return content


if __name__ == "__main__":
    sys.exit(main())
