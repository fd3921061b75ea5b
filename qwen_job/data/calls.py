"""Read tools and calls of tools, in the forms that data has them.

tools   {"type": "function", "function": {"name", "description", "parameters"}}, or the bare {"name", ...}
calls   {"id", "type": "function", "function": {"name", "arguments"}}, or the flat {"name", "arguments"}
inline  <tool_call>{"name", "arguments"}</tool_call> at the end of an answer, as Qwen's templates write calls, and
        <tool_response>...</tool_response> around results

Wherever an object or a list is expected, a string with its JSON is as good.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from qwen_job.chat.conversation import ToolCall, Turn
from qwen_job.data.keys import RecordError, refuse_depth, unused_keys
from qwen_job.data.values import from_json, is_list, json_object, kind, short

_CALL_KEYS = frozenset({"id", "type", "function", "name", "arguments"})
_FUNCTION_KEYS = frozenset({"name", "arguments"})
_NESTED_KEYS = _CALL_KEYS - _FUNCTION_KEYS
_TOOLS = 'a list of {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
_CALL = '{"name": ..., "arguments": {...}}'
_CALL_BLOCK = ("<tool_call>", "</tool_call>")
_RESULT_BLOCK = ("<tool_response>", "</tool_response>")
MARK = "<tool_"  # in every text with either
_new = tuple.__new__


def read_tools(value: object, field: str) -> tuple[Mapping[str, Any], ...]:
    """Return tools in the OpenAI form; ``value``: one of them, a list of them, or JSON of either.

    Raises:
        RecordError: one is no function, or has no name.
    """
    if isinstance(value, str):
        return _tools_in(value, field)
    if isinstance(value, dict):
        return (_tool(value, field),)
    if not is_list(value):
        raise RecordError(field, f"is {kind(value)}; write {_TOOLS}, or the same as JSON in a string")
    assert isinstance(value, (list, tuple))
    return tuple([_tool(tool, f"{field}[{number}]") for number, tool in enumerate(value)])


@lru_cache(maxsize=1024)
def _tools_in(text: str, field: str) -> tuple[Mapping[str, Any], ...]:
    value = from_json(text, field, _TOOLS)
    if not isinstance(value, (list, dict)):
        raise RecordError(field, f"holds {kind(value)} in a string; write {_TOOLS}")
    return read_tools(value, field)


def _tool(tool: object, field: str) -> Mapping[str, Any]:
    if isinstance(tool, str):
        tool = from_json(tool, field, "a function")
    if not isinstance(tool, dict):
        raise RecordError(field, f'is {kind(tool)}; write {{"type": "function", "function": {{"name": ...}}}}')
    whole = json_object(tool, field)
    if _is_usual(tool):
        return whole
    if tool.get("type") not in (None, "function"):
        raise RecordError(f"{field}.type", f"is {short(tool['type'])}; only function tools have a form in a template")
    wrapped = tool.get("function") is not None
    function = tool["function"] if wrapped else {key: tool[key] for key in tool if key not in ("type", "function")}
    where = f"{field}.function" if wrapped else field
    if not isinstance(function, dict):
        raise RecordError(
            where, f'is {kind(function)}; write {{"name": ..., "description": ..., "parameters": {{...}}}}'
        )
    name, parameters = function.get("name"), function.get("parameters")
    if not (isinstance(name, str) and name.strip()):
        raise RecordError(f"{where}.name", f"is {short(name)}; write the function's name")
    if isinstance(parameters, str):
        parameters = from_json(parameters, f"{where}.parameters", "a JSON schema") if parameters.strip() else {}
        function = {**function, "parameters": parameters}
    if not (parameters is None or isinstance(parameters, dict)):
        raise RecordError(
            f"{where}.parameters", f'is {kind(parameters)}; write a JSON schema: {{"type": "object", ...}}'
        )
    others = {key: value for key, value in tool.items() if key not in ("type", "function")} if wrapped else {}
    made = {"type": "function", "function": function, **others}
    return whole if made == tool and list(made) == list(tool) else json_object(made, field)


def _is_usual(tool: dict[Any, Any]) -> bool:
    """Tell whether a tool needs no second look: the OpenAI form, with keys in its order."""
    if len(tool) != 2 or list(tool) != ["type", "function"] or tool["type"] != "function":
        return False
    function = tool["function"]
    if not isinstance(function, dict):
        return False
    name, parameters = function.get("name"), function.get("parameters")
    return isinstance(name, str) and bool(name.strip()) and (parameters is None or isinstance(parameters, dict))


def read_calls(value: object, field: str, ignored: frozenset[str], unused: list[str]) -> tuple[ToolCall, ...]:
    """Return calls: ``value`` is one of them, a list of them, or JSON of either. Unused keys are added to ``unused``.

    Raises:
        RecordError: one has no name, or its arguments are no JSON object.
    """
    if isinstance(value, str):
        value = from_json(value, field, f"a call: {_CALL}")
    if isinstance(value, dict):
        return (_call(value, field, ignored, unused),)
    if not is_list(value):
        raise RecordError(field, f"is {kind(value)}; write a list of calls: {_CALL}")
    assert isinstance(value, (list, tuple))
    return tuple([_call(call, f"{field}[{number}]", ignored, unused) for number, call in enumerate(value)])


def _call(call: object, field: str, ignored: frozenset[str], unused: list[str]) -> ToolCall:
    if not isinstance(call, dict):
        raise RecordError(field, f"is {kind(call)}; write a call: {_CALL}")
    nested = call.get("function") is not None
    function, where = (call["function"], f"{field}.function") if nested else (call, field)
    if not isinstance(function, dict):
        raise RecordError(where, f"is {kind(function)}; write {_CALL}")
    if nested and not call.keys() <= _NESTED_KEYS:
        unused += unused_keys(call, _NESTED_KEYS, ignored, where=f"{field}.", role="assistant")
    used = _FUNCTION_KEYS if nested else _CALL_KEYS
    if not function.keys() <= used:
        unused += unused_keys(function, used, ignored, where=f"{where}.", role="assistant")
    name, call_type, call_id = function.get("name"), call.get("type"), call.get("id")
    if not (isinstance(name, str) and name.strip()):
        refuse_depth(name, f"{where}.name")
        raise RecordError(f"{where}.name", f"is {short(name)}; write the name of the tool that is called")
    if call_type not in (None, "", "function"):
        refuse_depth(call_type, f"{field}.type")
        raise RecordError(f"{field}.type", f"is {short(call_type)}; write function, the only type that is trained")
    if not (call_id is None or isinstance(call_id, str)):
        raise RecordError(f"{field}.id", f"is {kind(call_id)}; write a string")
    arguments = _arguments(function.get("arguments"), f"{where}.arguments")
    # The constructor takes twice as long.
    return _new(ToolCall, (name, arguments, call_id or ""))


def _arguments(value: object, field: str) -> Mapping[str, Any]:
    """Return the arguments of a call; null and an empty text stand for none, as OpenAI's API returns them."""
    if value is None or value == "":
        return {}
    parsed = from_json(value, field, "a JSON object") if isinstance(value, str) else value
    if not isinstance(parsed, dict):
        where = "holds" if isinstance(value, str) else "is"
        advice = " (it was converted to JSON twice)" if isinstance(value, str) and isinstance(parsed, str) else ""
        raise RecordError(field, f'{where} {kind(parsed)}{advice}; write a JSON object: {{"city": "Paris"}}')
    return json_object(parsed, field)


def inline_calls(turn: Turn, field: str) -> Turn:
    """Read <tool_call> blocks at the end of an answer as its calls; anything else in it remains text.

    Raises:
        RecordError: a block holds no call.
    """
    if turn.calls or _CALL_BLOCK[0] not in turn.text:
        return turn
    text, blocks = _blocks(turn.text, *_CALL_BLOCK)
    calls: list[ToolCall] = []
    for block in blocks:
        if block.lstrip().startswith("<function="):
            raise RecordError(f"{field}.<tool_call>", "is a call in the XML of Qwen3-Coder and Qwen3.5 (<function=...>)"
                              f", which does not tell a number from a text; write tool_calls: {_CALL}")  # fmt: skip
        calls += read_calls(block, f"{field}.<tool_call>", frozenset(), [])
    return turn._replace(text=text.rstrip("\n"), calls=tuple(calls)) if calls else turn


def inline_results(turn: Turn) -> list[Turn]:
    """Return a tool turn without the <tool_response> blocks around its results, one turn for each of them."""
    if _RESULT_BLOCK[0] not in turn.text:
        return [turn]
    before, blocks = _blocks(turn.text, *_RESULT_BLOCK)
    if before.strip() or not blocks:
        return [turn]
    return [turn._replace(text=text.removeprefix("\n").removesuffix("\n")) for text in blocks]


def _blocks(text: str, start: str, end: str) -> tuple[str, list[str]]:
    """Return the text before the blocks at its end, and what is in them."""
    pieces, blocks = text.split(start), list[str]()
    while len(pieces) > 1 and pieces[-1].rstrip().endswith(end) and pieces[-1].count(end) == 1:
        blocks.append(pieces.pop().rstrip().removesuffix(end))
    return start.join(pieces), blocks[::-1]
