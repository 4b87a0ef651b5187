"""`llamaherd run`."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter

from llamaherd.cli.options import find_gateway
from llamaherd.client import Gateway
from llamaherd.console import Screen, print_json
from llamaherd.failures import INTERRUPTED, OK, USAGE, exit_code_of
from llamaherd_shared.errors import HerdError, NotFound


def run(
    model: str,
    prompt: str | None = None,
    /,
    *,
    system: Annotated[str | None, Parameter(help="What the model is told before the conversation.")] = None,
    max_tokens: Annotated[int | None, Parameter(help="Longest answer, in tokens.")] = None,
    gateway_url: Annotated[
        str | None,
        Parameter(help="Address of the gateway. Default: LLAMAHERD_GATEWAY_URL, the herd here, http://127.0.0.1:8080."),
    ] = None,
    json: Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object per answer.")] = False,
) -> int:
    """Chat with a model in the terminal. It is loaded first if it is not.

    With PROMPT, prints the answer and ends; a prompt is also read from a pipe: `llamaherd run cria < question.txt`.
    Without, talks until Ctrl-D or /bye; Ctrl-C stops an answer.
    """
    chat = _Chat(Gateway(find_gateway(gateway_url)), model, max_tokens=max_tokens, json=json)
    if system:
        chat.messages.append({"role": "system", "content": system})
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            Screen().fail('nothing to ask: the prompt that was piped in is empty; try `llamaherd run cria "Hello"`')
            return USAGE
    if prompt is not None:
        chat.ask(prompt)
        return OK
    return chat.talk()


class _Chat:
    """One conversation."""

    def __init__(self, gateway: Gateway, model: str, *, max_tokens: int | None, json: bool) -> None:
        self.messages: list[dict[str, str]] = []
        self._gateway, self._model, self._max_tokens, self._json = gateway, model, max_tokens, json
        self._screen = Screen(quiet=json)

    def ask(self, prompt: str) -> None:
        """Print the answer as it comes and remember both."""
        self.messages.append({"role": "user", "content": prompt})
        parts: list[str] = []
        pieces = self._gateway.chat(self._model, self.messages, max_tokens=self._max_tokens)
        # Closing the generator closes the connection, and that stops the generation.
        with contextlib.closing(pieces):  # type: ignore[type-var]  # it is a generator
            for piece in self._waited_for(pieces):
                parts.append(piece)
                if not self._json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        answer = "".join(parts)
        if self._json:
            print_json({"model": self._model, "prompt": prompt, "answer": answer})
        elif not answer.endswith("\n"):
            sys.stdout.write("\n")
        self.messages.append({"role": "assistant", "content": answer})

    def talk(self) -> int:
        """Until the person leaves."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # editing and history at the prompt
        self._screen.say(f"Talking to {self._model}. /bye or Ctrl-D ends, /clear forgets what was said.", "dim")
        while True:
            try:
                prompt = input(">>> ").strip()
            except EOFError:
                self._screen.say("")
                return OK
            except KeyboardInterrupt:
                self._screen.say("")
                return INTERRUPTED
            if prompt in ("/bye", "/exit", "/quit"):
                return OK
            if prompt == "/clear":
                self.messages = [message for message in self.messages if message["role"] == "system"]
            elif prompt:
                code = self._ask_once(prompt)
                if code != OK:
                    return code

    def _ask_once(self, prompt: str) -> int:
        before = len(self.messages)
        try:
            self.ask(prompt)
        except KeyboardInterrupt:
            self._screen.say("\n(stopped)", "dim")
        except NotFound:
            raise  # no answer will ever come from a model that is not there
        except HerdError as error:
            self._screen.fail(error.message)
            del self.messages[before:]
            if self._json:
                return exit_code_of(error)
        return OK

    def _waited_for(self, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces; while the first one takes long, a line says so."""
        with self._waiting():
            first = next(pieces, None)
        if first is not None:
            yield first
            yield from pieces

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        if self._json or not sys.stderr.isatty():
            yield
            return
        born = time.monotonic()
        with self._screen.err.status(f"waiting for {self._model} (it is loaded first if it is not)"):
            yield
        if time.monotonic() - born > 5:
            self._screen.err.print(f"({time.monotonic() - born:.0f} s)", style="dim")
