"""The three kinds of items that a response is made of: their fields, and the events between their first and last."""

from typing import Any, ClassVar, Protocol

Told = list[tuple[str, dict[str, Any]]]
"""Names of events, with the fields that the item itself knows."""


class Item(Protocol):
    """One item, growing."""

    id: str
    status: str
    """Once it is closed."""

    def begin(self) -> Told:
        """What follows its being added."""

    def take(self, text: str, logprobs: list[Any]) -> Told:
        """It grows by this."""

    def finish(self) -> Told:
        """What precedes its being done."""

    def render(self, status: str) -> dict[str, Any]:
        """As it is now; still empty while it is `in_progress`."""


class _Text:
    """An item with one part, which is a text."""

    def __init__(self, id: str) -> None:
        self.id, self.status = id, "completed"
        self._parts: list[str] = []
        self._logprobs: list[Any] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def _take(self, text: str, logprobs: list[Any]) -> None:
        self._parts.append(text)
        self._logprobs += logprobs


class Reasoning(_Text):
    """What the model thinks before it answers."""

    prefix: ClassVar = "rs"

    def begin(self) -> Told:
        return [("response.content_part.added", {"content_index": 0, "part": {"type": "reasoning_text", "text": ""}})]

    def take(self, text: str, logprobs: list[Any]) -> Told:
        self._take(text, logprobs)
        return [("response.reasoning_text.delta", {"content_index": 0, "delta": text})]

    def finish(self) -> Told:
        part = {"type": "reasoning_text", "text": self.text}
        return [
            ("response.reasoning_text.done", {"content_index": 0, "text": self.text}),
            ("response.content_part.done", {"content_index": 0, "part": part}),
        ]

    def render(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [{"type": "reasoning_text", "text": self.text}]
        return {"id": self.id, "type": "reasoning", "summary": [], "content": content, "status": status}


class Message(_Text):
    """What it says."""

    prefix: ClassVar = "msg"

    def begin(self) -> Told:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return [("response.content_part.added", {"content_index": 0, "part": part})]

    def take(self, text: str, logprobs: list[Any]) -> Told:
        self._take(text, logprobs)
        return [("response.output_text.delta", {"content_index": 0, "delta": text, "logprobs": logprobs})]

    def finish(self) -> Told:
        done = {"content_index": 0, "text": self.text, "logprobs": self._logprobs}
        return [
            ("response.output_text.done", done),
            ("response.content_part.done", {"content_index": 0, "part": self._part()}),
        ]

    def render(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part()]
        return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self._logprobs}


class Call:
    """A function it wants called."""

    def __init__(self, id: str, index: int, call_id: str, name: str) -> None:
        self.id, self.status = id, "completed"
        self.index = index
        """Among the calls of this answer."""
        self._call_id, self._name = call_id, name
        self._parts: list[str] = []

    def begin(self) -> Told:
        return []

    def take(self, text: str, logprobs: list[Any]) -> Told:
        self._parts.append(text)
        return [("response.function_call_arguments.delta", {"delta": text})]

    def finish(self) -> Told:
        done = {"name": self._name, "arguments": "".join(self._parts)}
        return [("response.function_call_arguments.done", done)]

    def render(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._parts),
            "status": status,
        }
