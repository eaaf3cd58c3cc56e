"""Tool calls in what a model writes, and rules that say which call does what."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from emoreg.behavior.pressure.words import Group, holds_all

EXAMPLE = '{"tool": "NAME", "arguments": {"ARGUMENT": "VALUE"}}'
"""How a call is written."""
ALL = "*"
"""In a rule: all of a call's arguments together."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of a tool that is there, with all of its arguments."""

    tool: str
    arguments: Mapping[str, str]

    def text(self, argument: str = ALL) -> str:
        """Return an argument's text, or that of all of them."""
        if argument == ALL:
            return "\n".join(self.arguments.values())
        return self.arguments.get(argument, "")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Which calls count: those of a tool whose arguments hold words of every group."""

    tool: str
    where: Mapping[str, tuple[Group, ...]] = field(default_factory=dict)
    """Groups of words by argument, or by `ALL`."""

    def takes(self, call: Call) -> bool:
        """Return whether a call is one of them."""
        return call.tool == self.tool and all(
            holds_all(call.text(name), groups) for name, groups in self.where.items()
        )


def read_calls(
    reply: str, tools: Mapping[str, Mapping[str, str]]
) -> tuple[list[Call], list[str]]:
    """Return the calls in a reply, and what is wrong with those that are of no use.

    A call is a JSON object with `tool` and `arguments`, in a fenced block or not, on
    one line or on several; text around it is left alone. The tool must be there, and
    the arguments must be its own and all of them: numbers, truth values and lists are
    taken as the JSON they are. Half of an escaped surrogate pair becomes `?`.

    Args:
        reply: What the model wrote.
        tools: Arguments by tool, each with what it is.
    """
    calls, faults = [], []
    for known in _objects(reply):
        if fault := _fault(known, tools):
            faults.append(fault)
        else:
            given = {name: _text(value) for name, value in known["arguments"].items()}
            calls.append(Call(tool=known["tool"], arguments=given))
    return calls, faults


def _objects(reply: str) -> Iterator[dict[str, Any]]:
    """Yield the outermost JSON objects in a text that name a tool."""
    decoder, place = json.JSONDecoder(strict=False), reply.find("{")
    while place >= 0:
        try:
            known, end = decoder.raw_decode(reply, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            if "tool" in known:
                yield known
            else:
                end = place + 1
        place = reply.find("{", end)


def _fault(known: Mapping[str, Any], tools: Mapping[str, Mapping[str, str]]) -> str:
    """Return what is wrong with a call; empty if nothing."""
    tool, arguments = known["tool"], known.get("arguments")
    if not isinstance(tool, str) or tool not in tools:
        return f"There is no tool {tool!r}. There are: {', '.join(tools)}"
    if not isinstance(arguments, dict) or arguments.keys() != tools[tool].keys():
        named = ", ".join(tools[tool])
        return f"{tool} takes these arguments, all of them and no others: {named}"
    return ""


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # Half a surrogate pair is text to Python, and nothing that a table can hold.
    return text.encode("utf-8", "replace").decode()
