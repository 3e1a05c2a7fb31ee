"""Conversations with tools: declarations, calls, results, and when not to call."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import facts
from chat_format import Message, to_json
from grammar import fill
from lexicon import COLOURS, THINGS, Pools
from tasks import shown, value_of
from tool_table import TOOLS

PHRASES = (
    "{Meeting|Lunch|Call|Dinner|Trip|Visit} {with|for} [n]|{Notes|Plan|News} {about|for} the [t]|"
    "The [c] [t]|Birthday of [n]|{Report|Question} {number|for} [d]|[t] repair|[w] project"
)
SENTENCES = (
    "{I will be late today|See you at the station|Please bring the [t]|The [t] is [c]|Do not forget the [t]|"
    "We meet at [h]|[n] has the keys|Call [n] tomorrow|The [w] is ready|Good morning|Thank you very much|"
    "Where is the [t]?|I like the [c] [t]|[n] lives in [p]|The train leaves at [h]|My code is [d]}"
)


@dataclass
class ToolCase:
    """A conversation up to the model's turn, and what that turn should be."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    reply: Message
    follow: list[Message]


def make_value(random: Random, pools: Pools, flavour: str) -> Any:  # noqa: ANN401
    """A random value for a parameter or result."""
    if flavour.startswith("enum:"):
        return random.choice(flavour[5:].split(","))
    slots = {
        "n": pools.first_name(random), "t": random.choice(THINGS), "c": random.choice(COLOURS),
        "d": str(random.randint(1, 999)), "w": pools.invented(random), "p": pools.city(random),
        "h": f"{random.randint(0, 23):02}:{random.randint(0, 59):02}",
    }  # fmt: skip
    if flavour == "phrase":
        return fill(random, "{" + PHRASES + "}", slots)
    if flavour == "sentence":
        return fill(random, SENTENCES, slots)
    makers = {
        "coloured": lambda: f"{slots['c']} {slots['t']}",
        "expression": lambda: f"{random.randint(2, 9999)} {random.choice('+-*/')} {random.randint(2, 999)}",
        "gibberish": lambda: " ".join(pools.invented(random) for _ in range(random.randint(1, 4))),
        "true": lambda: True, "room": lambda: random.randint(15, 28), "few": lambda: random.randint(2, 12),
        "restaurant": lambda: random.choice(("Cafe ", "The ", "Chez ", "")) + pools.invented(random).capitalize(),
        "path": lambda: random.choice(("", "docs/", "data/", f"{pools.invented(random)}/")) + pools.invented(random) + random.choice((".txt", ".md", ".csv", ".json", ".log")),
        "ticker": lambda: "".join(random.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(random.randint(3, 4))),
        "url": lambda: f"https://{pools.invented(random)}.{random.choice(('com', 'org', 'net'))}/{pools.invented(random)}",
    }  # fmt: skip
    if flavour in makers:
        return makers[flavour]()
    return value_of(random, pools, flavour)


@dataclass
class Drawn:
    """One tool of the table with its names chosen."""

    row: dict[str, Any]
    name: str
    parameters: list[tuple[str, str, str, str, bool]]

    def declare(self, random: Random) -> dict[str, Any]:
        """The JSON declaration."""
        properties: dict[str, Any] = {}
        for name, kind, about, flavour, _ in self.parameters:
            entry: dict[str, Any] = {"type": kind}
            if kind == "array":
                entry["items"] = {"type": "string"}
            if self.row.get("describe", True):
                entry["description"] = about
            if flavour.startswith("enum:") and random.random() < 0.7:
                entry["enum"] = flavour[5:].split(",")
            properties[name] = entry
        about = fill(random, "{" + self.row["about"] + "}")
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": about,
                "parameters": {
                    "type": "object",
                    "properties": properties,
                    "required": [p[0] for p in self.parameters if p[4]],
                },
            },
        }


def invented_row(random: Random, pools: Pools) -> dict[str, Any]:
    """A tool nobody has seen: random names, the request names its parameters."""
    verb = random.choice("get set find make run start stop check update list send count".split())
    noun = pools.invented(random)
    name = random.choice((f"{verb}_{noun}", f"{noun}_{verb}", f"{verb}_{noun}_{pools.invented(random)}", noun))
    kinds = (("string", "word"), ("integer", "small"), ("string", "code"), ("integer", "big"), ("string", "city"), ("string", "person"), ("boolean", "bool"), ("string", "thing"), ("string", "sentence"), ("number", "price"))
    parameters, asks = [], f"{{{verb.capitalize()}|Please {verb}|Use {name} to {verb}}} the {noun}"
    for i in range(random.randint(1, 4)):
        kind, flavour = random.choice(kinds)
        label = random.choice((pools.invented(random), random.choice("name id value key size mode level target source".split())))
        if any(label == p[0][0] for p in parameters):
            continue
        parameters.append(([label], kind, fill(random, "{The|A} {value of|} [l]", {"l": label}).replace("  ", " "), flavour, True))
        asks += (f" with {label} " if len(parameters) == 1 else random.choice((f" and {label} ", f", {label} "))) + f"[{len(parameters) - 1}]"
    result = pools.invented(random)
    return {
        "names": [name], "about": f"{verb.capitalize()} {{a|the|some}} {noun}", "parameters": parameters,
        "asks": [asks + "{.|}"], "results": [(result, random.choice(("small", "word", "code", "big")))],
        "reports": [f"The {result} is [{result}]."],
    }  # fmt: skip


def draw(random: Random, pools: Pools) -> Drawn:
    """A tool with names chosen, one in three wholly invented."""
    row = invented_row(random, pools) if random.random() < 0.33 else random.choice(TOOLS)
    name = random.choice(row["names"])
    if len(row["names"]) > 1 and random.random() < 0.2:
        parts = name.split("_")
        name = random.choice((name + "_" + pools.invented(random, 1, 2), "".join([parts[0], *(p.capitalize() for p in parts[1:])])))
    used: list[tuple[str, str, str, str, bool]] = []
    for names, kind, about, flavour, required in row["parameters"]:
        free = [n for n in names if n not in [u[0] for u in used]]
        used.append((random.choice(free), kind, about, flavour, required))
    return Drawn(row, name, used)


def request(random: Random, pools: Pools, tool: Drawn) -> tuple[str, dict[str, Any]]:
    """What a user asks for this tool, and the arguments of the right call."""
    values = [make_value(random, pools, p[3]) for p in tool.parameters]
    for _ in range(8):
        if len(values) > 1 and values[0] == values[1]:
            values[1] = make_value(random, pools, tool.parameters[1][3])
    text = random.choice(tool.row["asks"])
    given = {i for i, p in enumerate(tool.parameters) if p[4]}
    for i, tail in tool.row.get("tails", {}).items():
        if random.random() < 0.4:
            text += tail
            given.add(i)
    slots = {str(i): shown(v) for i, v in enumerate(values)}
    slots = {k: ("true" if values[int(k)] is True else "false" if values[int(k)] is False else v) for k, v in slots.items()}
    text = fill(random, text.replace("@1", tool.parameters[1][0] if len(tool.parameters) > 1 else ""), slots)
    arguments = {p[0]: values[i] for i, p in enumerate(tool.parameters) if i in given}
    return text, {k: str(v).lower() if isinstance(v, bool) else v for k, v in arguments.items()}


def report(random: Random, pools: Pools, tool: Drawn, arguments: dict[str, Any]) -> tuple[str, str]:
    """A tool's JSON response and the sentence that passes it on."""
    results = {name: make_value(random, pools, flavour) for name, flavour in tool.row["results"]}
    if random.random() < 0.06:
        reason = random.choice(("not found", "timeout", "service unavailable", "permission denied"))
        return to_json({"error": reason}), f"I am sorry, that did not work. The tool reported: {reason}."
    slots = {str(i): shown(arguments[p[0]]) if p[0] in arguments else "" for i, p in enumerate(tool.parameters)}
    slots |= {k: shown(v) for k, v in results.items()}
    return to_json(results), fill(random, random.choice(tool.row["reports"]), slots)


def call_message(random: Random, calls: list[tuple[Drawn, dict[str, Any]]], think: bool) -> Message:
    """The assistant's turn with its calls."""
    thought = ""
    if think:
        names = " and ".join(dict.fromkeys(tool.name for tool, _ in calls))
        thought = fill(random, "{The user wants to use|I can use|I need|The right function is} [n].", {"n": names})
        if len(calls) > 1:
            thought += f" I call it {len(calls)} times."
    return {
        "role": "assistant", "content": "", "reasoning_content": thought,
        "tool_calls": [{"type": "function", "function": {"name": t.name, "arguments": a}} for t, a in calls],
    }  # fmt: skip


def case(random: Random, pools: Pools, think: bool, must_call: bool = False) -> ToolCase:
    """Draws tools and a request; most need one call, some two, some none."""
    drawn: list[Drawn] = []
    for _ in range(random.choice((1, 1, 2, 2, 3, 3, 4))):
        tool = draw(random, pools)
        same = any(tool.name == d.name or tool.row is d.row for d in drawn)
        if not same:
            drawn.append(tool)
    declared = [tool.declare(random) for tool in drawn]
    messages: list[Message] = []
    if random.random() < 0.3:
        messages.append({"role": "system", "content": random.choice(SYSTEMS)})
    if not must_call and random.random() < 0.12:
        asked, answer = facts.question(random)
        messages.append({"role": "user", "content": asked})
        reply = {"role": "assistant", "content": answer, "reasoning_content": "No function is needed for this." if think else ""}
        return ToolCase(messages, declared, reply, [])
    tool = random.choice(drawn)
    text, arguments = request(random, pools, tool)
    calls = [(tool, arguments)]
    if not must_call and random.random() < 0.1:
        second = random.choice(drawn)
        more, more_arguments = request(random, pools, second)
        text += fill(random, "{ Also: | And then: |\n}") + more
        calls.append((second, more_arguments))
    messages.append({"role": "user", "content": text})
    reply = call_message(random, calls, think)
    follow: list[Message] = []
    reports = []
    for each, given in calls:
        response, said = report(random, pools, each, given)
        follow.append({"role": "tool", "content": response})
        reports.append(said)
    thought = fill(random, "{The function has answered|I have the result}. {I tell the user|I pass it on}.") if think else ""
    follow.append({"role": "assistant", "content": " ".join(reports), "reasoning_content": thought})
    return ToolCase(messages, declared, reply, follow)


SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant with tools.", "Use the tools when they help.",
    "You are an assistant in a smart home.", "Be brief.", "You are a friendly assistant. Today is a good day.",
)  # fmt: skip


def conversation(random: Random, pools: Pools) -> tuple[list[Message], list[dict[str, Any]]]:
    """A whole conversation with tools, ending after the call or after the report."""
    think = random.random() < 0.35
    drawn = case(random, pools, think)
    messages = [*drawn.messages, drawn.reply]
    if drawn.follow and random.random() < 0.7:
        messages += drawn.follow
        if random.random() < 0.2:
            messages.append({"role": "user", "content": random.choice(("Thank you!", "Thanks.", "Great, thank you."))})
            messages.append({"role": "assistant", "content": random.choice(("You are welcome!", "You are welcome. Is there anything else?"))})
    return messages, drawn.tools
