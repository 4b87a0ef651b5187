"""Curl lines of the docs: what they ask, and asking it, by curl itself or by httpx where there is no curl."""

import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True)
class Line:
    """What one line asks. Knows the options that our docs use, and refuses others."""

    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    data: str = ""
    """As it stands behind `-d` or `--data-binary`: `@` means a file."""
    form: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        return urlsplit(self.url).path


def parse_line(line: str) -> Line:
    """Raises `ValueError` for what is no curl line of ours."""
    first, *words = shlex.split(line)
    if first != "curl":
        raise ValueError(f"no curl line: {line}")
    method, url, data = "", "", ""
    headers: dict[str, str] = {}
    form: list[tuple[str, str]] = []
    rest = iter(words)
    for word in rest:
        match word:
            case "-N":
                pass
            case "-I":
                method = "HEAD"
            case "-X":
                method = next(rest)
            case "-H":
                name, _, value = next(rest).partition(":")
                headers[name.strip().lower()] = value.strip()
            case "-d" | "--data-binary":
                data = next(rest)
            case "-F":
                name, _, value = next(rest).partition("=")
                form.append((name, value))
            case _ if word.startswith("http"):
                url = word
            case _:
                raise ValueError(f"curl's option {word} is not known here: {line}")
    return Line(method or ("POST" if data or form else "GET"), url, headers, data, tuple(form))


def run_line(line: str, folder: Path) -> Answer:
    """The line as a shell would run it in this folder."""
    curl = shutil.which("curl")
    return run_curl(curl, line, folder) if curl is not None else run_httpx(line, folder)


def run_curl(curl: str, line: str, folder: Path) -> Answer:
    """Raises `CalledProcessError` when curl gets no answer."""
    body = folder / "answer"
    body.unlink(missing_ok=True)
    # -q: whoever runs the tests may have a .curlrc.
    words = [curl, "-q", "-sS", "--noproxy", "*", "--max-time", str(TIMEOUT_S), "-o", str(body)]
    words += ["-w", "%{http_code} %{content_type}", *shlex.split(line)[1:]]
    ran = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True, timeout=TIMEOUT_S + 5)
    status, _, content_type = ran.stdout.partition(" ")
    received = body.read_bytes() if body.exists() else b""
    return Answer(int(status), content_type, b"" if parse_line(line).method == "HEAD" else received)


def run_httpx(line: str, folder: Path) -> Answer:
    asked = parse_line(line)
    content = (folder / asked.data[1:]).read_bytes() if asked.data.startswith("@") else asked.data.encode()
    fields = {name: value for name, value in asked.form if not value.startswith("@")}
    files = {name: (value[1:], (folder / value[1:]).read_bytes()) for name, value in asked.form if value[:1] == "@"}
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
        body = {"data": fields, "files": files} if asked.form else {"content": content}
        answer = client.request(asked.method, asked.url, headers=asked.headers, **body)
    return Answer(answer.status_code, answer.headers.get("content-type", ""), answer.content)
