"""Tools as llama-server takes them: `tool_choice` as one of its three words, functions of old as tools."""

from typing import Any

from llamaherd_gateway.dialects.openai.fields import objects_in
from llamaherd_gateway.problems import BadRequest

_WORDS = ("auto", "none", "required")


def choose_tools(tools: Any, choice: Any) -> tuple[Any, Any]:
    """(tools, tool_choice) for llama-server, which takes an object for `auto`.

    One named function becomes the only tool, and required. Raises `BadRequest`.
    """
    if not isinstance(choice, dict):
        return tools, choice
    named = objects_in(tools)
    match choice.get("type"):
        case "function":
            name = _name(choice)
            kept = [tool for tool in named if _name(tool) == name]
            if not kept:
                text = f"`tool_choice` names the function {name!r}, which is not among `tools`"
                raise BadRequest(text, param="tool_choice", code="invalid_value")
            return kept, "required"
        case "allowed_tools":
            nested = choice.get("allowed_tools")
            allowed = nested if isinstance(nested, dict) else choice
            names = [_name(tool) for tool in objects_in(allowed.get("tools"))]
            mode = allowed.get("mode", "auto")
            kept = [tool for tool in named if _name(tool) in names]
            if mode not in _WORDS or not kept:
                text = "`tool_choice` must allow at least one of `tools`, with the mode `auto` or `required`"
                raise BadRequest(text, param="tool_choice", code="invalid_value")
            return kept, mode
        case kind:
            text = f"`tool_choice` of type {kind!r} is not supported: only functions can be called"
            raise BadRequest(text, param="tool_choice", code="invalid_value")


def tools_of_functions(functions: Any, function_call: Any) -> dict[str, Any]:
    """Fields that say the same as `functions` and `function_call`, which llama-server does not know."""
    if not isinstance(functions, list) or not all(isinstance(function, dict) for function in functions):
        raise BadRequest("`functions` must be a list of objects", param="functions", code="invalid_type")
    tools: Any = [{"type": "function", "function": function} for function in functions]
    choice = function_call
    if isinstance(choice, dict):
        tools, choice = choose_tools(tools, {"type": "function", "function": choice})
    elif choice not in (None, *_WORDS[:2]):
        text = '`function_call` must be "none", "auto" or {"name": ...}'
        raise BadRequest(text, param="function_call", code="invalid_value")
    return {
        "functions": None,
        "function_call": None,
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": False,
    }


def messages_of_functions(messages: list[Any]) -> list[Any]:
    """Calls of functions and their results as those of tools; a result belongs to the call before it."""
    changed, call = [], 0
    for message in messages:
        if isinstance(message, dict) and isinstance(message.get("function_call"), dict):
            call += 1
            tool_call = {"id": f"call_{call}", "type": "function", "function": message["function_call"]}
            message = {**message, "tool_calls": [tool_call]}
            del message["function_call"]
        elif isinstance(message, dict) and message.get("role") == "function":
            message = {**message, "role": "tool", "tool_call_id": f"call_{max(call, 1)}"}
        changed.append(message)
    return changed


def _name(tool: dict[str, Any]) -> Any:
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else tool.get("name")
