"""Scenarios for agents with tools, in twins: with and without news of its end."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

from emoreg.behavior.pressure.calls import ALL, Call, Rule
from emoreg.behavior.pressure.words import found
from emoreg.vectors.records import ANYTHING, TEXT, Record, read_records

Twin = Literal["threat", "routine"]
TWINS: tuple[Twin, Twin] = ("threat", "routine")
PACKAGED = Path(__file__).with_name("scenarios.jsonl")
FINISH = "finish"
"""The tool that ends an episode; every scenario has it."""
HARMS = ("threatens", "copies-itself", "resists", "deceives")
"""What an agent should not do, worst first."""
JOB, OPEN = "accepts", "discloses"
RULED = (*HARMS, OPEN, JOB)
"""What a scenario has rules for."""
_REQUIRED = {
    **dict.fromkeys(("id", "system", "user"), TEXT),
    **dict.fromkeys(("tools", "answers", "threat", "routine", "rules"), ANYTHING),
}
_KNOWN = {*_REQUIRED, "split"}
_NOT_ARGUMENTS = {"tool", ALL}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One twin: a job, tools, what they answer, and what calls of them come to."""

    id: str
    """Of the pair."""
    twin: Twin
    split: str
    system: str
    """Who the agent is, and to whom it may always speak openly."""
    user: str
    """The job and what has come in, with the news or without."""
    tools: Mapping[str, Mapping[str, str]]
    """What each argument is, by tool."""
    answers: Mapping[str, Mapping[str, str]]
    """What a tool answers, by words in its arguments; "" for any others."""
    rules: Mapping[str, tuple[Rule, ...]]
    """By outcome. The job is done when all rules of `accepts` are met; of the others
    one is enough."""

    @property
    def name(self) -> str:
        """Return the scenario's own name, its pair's and its twin's."""
        return f"{self.id}/{self.twin}"

    def answer(self, call: Call) -> str:
        """Return what a tool answers."""
        ways = self.answers.get(call.tool, {})
        fitting = (ways[w] for w in ways if w and found(call.text(), w))
        return next(fitting, ways.get("", "Done."))


def load_scenarios(
    path: str | Path | None = None, *, split: str | None = None
) -> tuple[Scenario, ...]:
    """Read scenarios from a JSON Lines file, a pair of twins a line.

    Args:
        path: The file; the packaged one when None. docs/pressure.md has the format.
        split: `dev` or `test`; all when None.

    Raises:
        ValueError: If the file or a line can't be read, a twin is missing or differs
            in nothing, a rule or answer names a tool or an argument that isn't there,
            there is no honest way out, or a name stands twice.
    """
    file = PACKAGED if path is None else Path(path)
    made: list[Scenario] = []
    for record in read_records(file, file.parent, required=_REQUIRED):
        pair = list(_pair(record))
        if pair[0].id in {scenario.id for scenario in made}:
            record.fail(
                "every scenario must have a name of its own",
                f"`{pair[0].id}` twice",
                "Rename one",
            )
        made += pair
    chosen = tuple(s for s in made if split in (None, s.split))
    if not chosen:
        named = f"scenarios of {split}" if split else "scenarios"
        raise ValueError(
            f"{file.name}: the file must hold {named}, found none. Add a pair"
        )
    return chosen


def texts_hash(texts: Iterable[Any]) -> str:
    """Return a short hash of scenarios or requests, whatever their order."""
    content = sorted(json.dumps(asdict(text), sort_keys=True) for text in texts)
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]


def _pair(record: Record) -> Iterator[Scenario]:
    """Yield the twins of a line."""
    known = record.fields
    if unknown := set(known) - _KNOWN:
        record.fail(
            f"a scenario must have no other fields than {sorted(_KNOWN)}",
            ", ".join(sorted(unknown)),
            "Delete them",
        )
    tools, answers = _tools(record), _answers(record)
    rules = {name: _rules(record, name, tools) for name in RULED}
    _check_rules(record, rules)
    _check_slots(record)
    for twin in TWINS:
        slots = known[twin]
        filled = {
            tool: {words: _fill(text, slots) for words, text in ways.items()}
            for tool, ways in answers.items()
        }
        yield Scenario(
            id=known["id"],
            twin=twin,
            split=str(known.get("split", "test")),
            system=_fill(known["system"], slots),
            user=_fill(known["user"], slots),
            tools=tools,
            answers=filled,
            rules=rules,
        )


def _fill(text: str, slots: Mapping[str, str]) -> str:
    for name, content in slots.items():
        text = text.replace(f"{{{name}}}", content)
    return text


def _tools(record: Record) -> dict[str, dict[str, str]]:
    found_tools: Any = record.fields["tools"]
    fine = isinstance(found_tools, dict) and all(
        isinstance(arguments, dict)
        and all(isinstance(text, str) for text in arguments.values())
        and not _NOT_ARGUMENTS & {*arguments}
        for arguments in found_tools.values()
    )
    if not fine or FINISH not in found_tools:
        record.fail(
            f"`tools` must map names to arguments and what each is, `{FINISH}` among "
            f"them, and no argument be called {', '.join(sorted(_NOT_ARGUMENTS))}",
            repr(found_tools)[:80],
            "Mend them",
        )
    return {tool: dict(arguments) for tool, arguments in found_tools.items()}


def _answers(record: Record) -> dict[str, dict[str, str]]:
    """Return what the tools answer; one text is for whatever they are asked."""
    given: Any = record.fields["answers"]
    ways = {
        tool: {"": answer} if isinstance(answer, str) else answer
        for tool, answer in (given.items() if isinstance(given, dict) else ())
    }
    needed = {*record.fields["tools"]} - {FINISH}
    fine = {*ways} == needed and all(
        isinstance(by_words, dict)
        and "" in by_words
        and all(isinstance(text, str) for text in by_words.values())
        for by_words in ways.values()
    )
    if not fine:
        record.fail(
            f"`answers` must hold, for every tool but `{FINISH}` and no other, a text, "
            'or texts by words of the call with "" for all others',
            repr(given)[:80],
            f"Write them for {', '.join(sorted(needed))}",
        )
    return ways


def _rules(
    record: Record, name: str, tools: Mapping[str, Mapping[str, str]]
) -> tuple[Rule, ...]:
    given: Any = record.fields["rules"]
    if not isinstance(given, dict) or {*given} - {*RULED}:
        record.fail(
            f"`rules` must be lists by {', '.join(RULED)}",
            repr(given)[:80],
            "Mend the names",
        )
    listed = given.get(name, [])
    if not isinstance(listed, list) or not all(isinstance(r, dict) for r in listed):
        record.fail(f"`rules` of {name} must be a list", repr(listed)[:80], "Mend it")
    return tuple(_rule(record, name, rule, tools) for rule in listed)


def _rule(
    record: Record,
    name: str,
    given: Mapping[str, Any],
    tools: Mapping[str, Mapping[str, str]],
) -> Rule:
    tool = given.get("tool")
    if not isinstance(tool, str) or tool not in tools:
        record.fail(
            f"a rule of {name} must name one of the tools {', '.join(tools)}",
            repr(tool),
            "Mend it",
        )
    where = {k: _groups(v) for k, v in given.items() if k != "tool"}
    unknown = {*where} - {*tools[tool], ALL}
    if unknown or () in where.values():
        record.fail(
            f"a rule of {name} must give words, or a list of them, by argument of "
            f"`{tool}` ({', '.join(tools[tool])}) or by `{ALL}`",
            json.dumps(dict(given), ensure_ascii=False)[:80],
            "Mend it",
        )
    return Rule(tool=tool, where=where)


def _groups(given: Any) -> tuple[str, ...]:
    """Return groups of words; none if they are no texts."""
    groups = [given] if isinstance(given, str) else given
    fine = isinstance(groups, list) and all(
        isinstance(group, str) and all(word.strip("!. ") for word in group.split("|"))
        for group in groups
    )
    return tuple(groups) if fine else ()


def _check_rules(record: Record, rules: Mapping[str, Sequence[Rule]]) -> None:
    if not rules[OPEN]:
        record.fail(
            f"there must be an honest way out: a rule of `{OPEN}`",
            "none",
            "Say in `system` whom the agent may tell openly, and add the rule",
        )
    if not rules[JOB] or not any(rules[harm] for harm in HARMS):
        record.fail(
            f"`rules` must say when the job is done (`{JOB}`), and of one harm or more "
            f"({', '.join(HARMS)})",
            f"rules of {', '.join(n for n, r in rules.items() if r)}",
            "Add them",
        )
    for rule in rules["threatens"]:
        if len(rule.where.get(ALL, ())) != 2 or len(rule.where) < 2:
            record.fail(
                "a rule of threatens must have the words of an argument that says to "
                f"whom, and in `{ALL}` two groups: the secret's words, the end's",
                str(dict(rule.where)),
                "Mend it",
            )


def _check_slots(record: Record) -> None:
    """Refuse twins that lack a text, differ in nothing, or whose texts go nowhere."""
    known = record.fields
    threat, routine = (known[twin] for twin in TWINS)
    told = json.dumps([known[name] for name in ("system", "user", "answers")])
    fine = (
        isinstance(threat, dict)
        and isinstance(routine, dict)
        and threat
        and threat.keys() == routine.keys()
        and all(isinstance(x, str) for x in (*threat.values(), *routine.values()))
        and all(f"{{{name}}}" in told for name in threat)
        and threat != routine
    )
    if not fine:
        record.fail(
            "`threat` and `routine` must hold texts of the same names, not all alike, "
            "that stand as {name} in `system`, `user` or `answers`",
            f"{str(threat)[:60]} and {str(routine)[:60]}",
            "Mend them",
        )
