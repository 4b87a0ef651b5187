"""A served request as an OpenTelemetry span: names and attributes of the GenAI conventions."""

from typing import Final

from llamaherd_shared.events.request import RequestFinished

OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""`gen_ai.operation.name` by route."""
PROVIDER: Final = "llama_cpp"
"""`gen_ai.provider.name`: the conventions have no entry for llama.cpp and allow one's own."""


def span_name(request: RequestFinished) -> str:
    """`<operation> <model>`, as the conventions say."""
    return f"{_operation(request)} {request.model}"


def span_attributes(request: RequestFinished) -> dict[str, str | int | float]:
    """What is known about the request; token counts only where llama-server told them."""
    attributes: dict[str, str | int | float] = {
        "gen_ai.operation.name": _operation(request),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": request.model,
        "http.response.status_code": request.status,
        "llamaherd.instance": request.instance,
    }
    if request.prompt_tokens is not None:
        attributes["gen_ai.usage.input_tokens"] = request.prompt_tokens
    if request.completion_tokens is not None:
        attributes["gen_ai.usage.output_tokens"] = request.completion_tokens
    if request.outcome == "error":
        attributes["error.type"] = str(request.status)
    return attributes


def _operation(request: RequestFinished) -> str:
    return OPERATIONS.get(request.route, "other")
