"""Questions with one right answer: arithmetic, JSON by schema, copying, lists, reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import stories
from chat_format import to_json
from grammar import fill, listing
from lexicon import COLOURS, COUNT_FOODS, FOODS, THINGS, Pools, sum_held_out


@dataclass
class Task:
    """A prompt and what to answer; `thought` is what may stand inside the think block."""

    prompt: str
    answer: str
    thought: str
    kind: str
    system: str = ""
    expected: Any = None
    plain: str = field(default="")


def _pair(random: Random, pools: Pools, high: int, ordered: bool) -> tuple[int, int]:
    while True:
        a, b = random.randint(0, high), random.randint(0, high)
        if ordered and a < b:
            a, b = b, a
        if sum_held_out(a, b) == pools.evaluation:
            return a, b


def arithmetic(random: Random, pools: Pools) -> Task:
    """Sums and differences of 0..99 (a few to 999), products to 12 x 12, exact quotients."""
    pick = random.random()
    high = 99 if pools.evaluation or random.random() < 0.8 else 999
    if pick < 0.38:
        a, b = _pair(random, pools, high, False)
        sign, word, result = "+", "plus", a + b
    elif pick < 0.72:
        a, b = _pair(random, pools, high, random.random() < 0.85)
        sign, word, result = "-", "minus", a - b
    elif pick < 0.9:
        a, b = random.randint(0, 12), random.randint(0, 12)
        sign, word, result = "*", "times", a * b
    else:
        b, result = random.randint(1, 12), random.randint(0, 12)
        a, sign, word = b * result, "/", "divided by"
    shown = random.choice(("×", "x", "*")) if sign == "*" else ("÷" if sign == "/" and random.random() < 0.4 else sign)
    style = random.random()
    plain = f"{a} {sign} {b} = {result}"
    if style < 0.2 and sign in "+-" and a >= b:
        prompt, answer, unit = _word_problem(random, pools, a, b, sign, result)
    else:
        prompt = fill(
            random,
            "{What is|What's|How much is|Calculate|Compute|Work out|Solve|Please compute} [e]",
            {"e": f"{a} {word} {b}" if random.random() < 0.4 else (f"{a} {shown} {b}" if random.random() < 0.8 else f"{a}{shown}{b}")},
        )
        prompt += "?" if prompt.startswith(("What", "How")) else random.choice((".", ""))
        if random.random() < 0.15:
            prompt = f"{a} {shown} {b} = ?" if random.random() < 0.6 else f"{a}{shown}{b}"
        answer = fill(random, "{[p]|[p]|[p].|The answer is [r].|[a] [w] [b] is [r].}" , {"p": plain, "r": str(result), "a": str(a), "b": str(b), "w": word})
        unit = ""
    return Task(prompt, answer, f"{_steps(a, b, sign, result)}", "arithmetic", expected=result, plain=plain)


def _steps(a: int, b: int, sign: str, result: int) -> str:
    if sign == "+" and a > 9 and b > 9:
        ones, tens = a % 10 + b % 10, a // 10 * 10 + b // 10 * 10
        return f"I add the tens: {a // 10 * 10} + {b // 10 * 10} = {tens}. I add the ones: {a % 10} + {b % 10} = {ones}. Together: {tens} + {ones} = {result}."
    if sign == "-" and a > 9 and b > 9 and a >= b:
        tens = b // 10 * 10
        return f"First I take away {tens}: {a} - {tens} = {a - tens}. Then I take away {b % 10}: {a - tens} - {b % 10} = {result}."
    return f"I need {a} {sign} {b}. That is {result}."


def _word_problem(
    random: Random, pools: Pools, a: int, b: int, sign: str, result: int
) -> tuple[str, str, str]:
    name = pools.first_name(random)
    thing = random.choice(list(COUNT_FOODS.values()))
    other = pools.first_name(random)
    if sign == "+":
        text = fill(
            random,
            "{[n] has [a] [t]. [o] gives [n] [b] more. How many [t] does [n] have now?|"
            "There are [a] [t] in a box and [b] [t] in a bag. How many [t] are there in all?|"
            "[n] picks [a] [t] in the morning and [b] in the evening. How many [t] is that?}",
            {"n": name, "a": str(a), "b": str(b), "t": thing, "o": other},
        )
    else:
        text = fill(
            random,
            "{[n] has [a] [t] and gives [b] to [o]. How many [t] are left?|"
            "There were [a] [t] on the table. [n] took [b]. How many [t] are left?|"
            "[n] had [a] [t] and lost [b] of them. How many [t] does [n] have now?}",
            {"n": name, "a": str(a), "b": str(b), "t": thing, "o": other},
        )
    answer = f"{a} {sign} {b} = {result}. "
    if "are left" in text:
        answer += f"There are {result} {thing} left."
    elif "have now" in text:
        answer += f"{name} has {result} {thing} now."
    else:
        answer += f"That is {result} {thing}."
    return text, answer, thing


FIELDS: dict[str, tuple[str, str]] = {
    "name": ("string", "person"), "full_name": ("string", "person"), "first_name": ("string", "first"),
    "age": ("integer", "small"), "city": ("string", "city"), "country": ("string", "word"),
    "email": ("string", "email"), "phone": ("string", "phone"), "price": ("number", "price"),
    "quantity": ("integer", "small"), "product": ("string", "thing"), "colour": ("string", "colour"),
    "in_stock": ("boolean", "bool"), "order_id": ("string", "code"), "title": ("string", "title"),
    "author": ("string", "person"), "year": ("integer", "year"), "pages": ("integer", "big"),
    "date": ("string", "date"), "time": ("string", "time"), "temperature": ("integer", "temp"),
    "rating": ("number", "rating"), "active": ("boolean", "bool"), "id": ("integer", "big"),
    "tags": ("array", "tags"), "items": ("array", "items"), "score": ("integer", "small"),
    "weight": ("number", "price"), "team": ("string", "word"), "food": ("string", "food"),
    "member": ("boolean", "bool"), "seats": ("integer", "small"), "code": ("string", "code"),
}  # fmt: skip


def value_of(random: Random, pools: Pools, flavour: str) -> Any:  # noqa: ANN401
    """A random value of a flavour."""
    makers = {
        "person": lambda: pools.full_name(random), "first": lambda: pools.first_name(random),
        "city": lambda: pools.city(random), "word": lambda: pools.invented(random).capitalize(),
        "small": lambda: random.randint(1, 99), "big": lambda: random.randint(100, 9999),
        "year": lambda: random.randint(1900, 2030), "temp": lambda: random.randint(-20, 40),
        "price": lambda: random.randint(100, 9999) / 100, "rating": lambda: random.randint(10, 50) / 10,
        "bool": lambda: random.random() < 0.5, "thing": lambda: random.choice(THINGS),
        "colour": lambda: random.choice(COLOURS), "code": lambda: pools.code(random),
        "food": lambda: random.choice(FOODS),
        "email": lambda: f"{pools.invented(random)}@{pools.invented(random)}.{random.choice(('com', 'org', 'net'))}",
        "phone": lambda: f"{random.randint(100, 999)}-{random.randint(1000, 9999)}",
        "date": lambda: f"{random.randint(2000, 2030)}-{random.randint(1, 12):02}-{random.randint(1, 28):02}",
        "time": lambda: f"{random.randint(0, 23):02}:{random.randint(0, 59):02}",
        "title": lambda: "The " + " ".join(w.capitalize() for w in (random.choice(COLOURS), random.choice(THINGS))),
        "tags": lambda: random.sample(THINGS, random.randint(1, 4)),
        "items": lambda: random.sample(FOODS, random.randint(2, 4)),
    }  # fmt: skip
    return makers[flavour]()


def _field(random: Random, pools: Pools, used: set[str]) -> tuple[str, str, str]:
    while True:
        if random.random() < 0.22:
            kind, flavour = random.choice(
                (("string", "word"), ("integer", "small"), ("integer", "big"), ("boolean", "bool"), ("string", "code"), ("number", "price"))
            )
            name = pools.invented(random) + random.choice(("", "", "_id", "_name", "_count"))
        else:
            name = random.choice(list(FIELDS))
            kind, flavour = FIELDS[name]
        if name not in used:
            used.add(name)
            return name, kind, flavour


def shown(value: Any) -> str:  # noqa: ANN401
    """How a value stands in a sentence."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return listing([str(v) for v in value])
    return str(value)


def json_task(random: Random, pools: Pools) -> Task:
    """An object that follows a schema, filled from the text of the prompt."""
    used: set[str] = set()
    fields = [_field(random, pools, used) for _ in range(random.randint(2, 5))]
    values = {name: value_of(random, pools, flavour) for name, _, flavour in fields}
    properties: dict[str, Any] = {}
    for name, kind, _ in fields:
        properties[name] = {"type": kind} if kind != "array" else {"type": "array", "items": {"type": "string"}}
    text_values = dict(values)
    if random.random() < 0.18:
        name = random.choice(("address", "customer", "details", "location", pools.invented(random)))
        if name not in properties:
            inner = [_field(random, pools, used) for _ in range(2)]
            inner = [f for f in inner if f[1] != "array"] or [("note", "string", "word")]
            values[name] = {n: value_of(random, pools, fl) for n, _, fl in inner}
            properties[name] = {
                "type": "object",
                "properties": {n: {"type": k} for n, k, _ in inner},
                "required": [n for n, _, _ in inner],
            }
            text_values |= {f"{name} {n}": v for n, v in values[name].items()}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    facts = list(text_values.items())
    if random.random() < 0.6:
        random.shuffle(facts)
    joiner = random.choice(("; ", ", ", ". ", "\n"))
    said = joiner.join(
        fill(random, random.choice(("[k]: [v]", "the [k] is [v]") if joiner != "\n" else ("[k]: [v]", "- [k]: [v]")),
             {"k": k.replace("_", " ") if random.random() < 0.5 else k, "v": shown(v)})
        for k, v in facts
    )  # fmt: skip
    style = random.random()
    spec = to_json(schema)
    system = ""
    if style < 0.35:
        system = fill(random, "{Reply only with JSON that follows this schema:|Answer with a JSON object that matches this schema:|You turn text into JSON. Schema:} ") + spec
        prompt = said
    elif style < 0.8:
        prompt = fill(random, "{Extract the data as JSON that follows this schema|Turn this into JSON with this schema|Write a JSON object for this schema|Fill this JSON schema}: ") + spec + "\n" + fill(random, "{Text|Data|Input|Facts}: ") + said
    else:
        keys = listing(list(values))
        prompt = fill(random, "{Make a JSON object with the keys|Write JSON with the fields|Give me JSON with the keys} ") + keys + ". " + said
        if any(isinstance(v, dict) for v in values.values()):
            prompt = f"Write JSON that follows this schema: {spec}\n{said}"
    thought = fill(random, "{The schema has the keys|I need the keys|The object needs} [k]. I {take|copy} the values from the text.", {"k": listing(list(values))})
    return Task(prompt, to_json(values), thought, "json", system=system, expected=values)


def copying(random: Random, pools: Pools) -> Task:
    """Repeat, reverse, count, sort, compare and pick from lists."""
    kind = random.randrange(8)
    words = [
        pools.invented(random) if random.random() < 0.4 else random.choice((random.choice(THINGS), random.choice(FOODS), random.choice(COLOURS)))
        for _ in range(random.randint(2, 6))
    ]  # fmt: skip
    text = ", ".join(words)
    if kind == 0:
        phrase = " ".join(words)
        prompt = fill(random, "{Repeat after me|Repeat this|Say this|Copy this text|Please repeat}: ") + phrase
        return Task(prompt, phrase, "I repeat the text.", "copy")
    if kind == 1:
        return Task(f"{fill(random, '{How many words are in this list|Count the items|How many items are there}')}: {text}",
                    f"There are {len(words)} items in the list.", " ".join(f"{i + 1} {w}." for i, w in enumerate(words)), "count")  # fmt: skip
    if kind == 2:
        return Task(f"{fill(random, '{Reverse this list|Write this list backwards|Turn the order around}')}: {text}",
                    ", ".join(reversed(words)), "I start with the last item.", "reverse")  # fmt: skip
    if kind == 3:
        i = random.randrange(len(words))
        place = ("first", "second", "third", "fourth", "fifth", "sixth")[i] if random.random() < 0.8 or i != len(words) - 1 else "last"
        return Task(f"{fill(random, '{What is|Which is|Tell me}')} the {place} {fill(random, '{word|item}')} of this list: {text}",
                    f"The {place} one is {words[i]}.", "I count from the start.", "pick")  # fmt: skip
    numbers = random.sample(range(100), random.randint(2, 6))
    if kind == 4:
        down = random.random() < 0.4
        how = "from large to small" if down else random.choice(("from small to large", "in ascending order"))
        return Task(f"Sort these numbers {how}: {', '.join(map(str, numbers))}",
                    ", ".join(map(str, sorted(numbers, reverse=down))), f"I order them {how}.", "sort")  # fmt: skip
    if kind == 5:
        small = random.random() < 0.5
        word = "smallest" if small else "largest"
        best = min(numbers) if small else max(numbers)
        return Task(f"{fill(random, '{What is|Which is}')} the {word} of these numbers: {', '.join(map(str, numbers))}?",
                    f"The {word} number is {best}.", f"I compare them. {best} is the {word}.", "largest")  # fmt: skip
    if kind == 6:
        a, b = numbers[:2]
        return Task(f"{fill(random, '{Which is larger|Which number is bigger|What is more}')}, {a} or {b}?",
                    f"{max(a, b)} is larger than {min(a, b)}.", f"I compare {a} and {b}.", "larger")  # fmt: skip
    name, what = pools.first_name(random), random.choice(THINGS)
    sentence = fill(random, "{[n] has a [c] [t] and lives in [p].|[n] comes from [p] and owns a [c] [t].|In [p] lives [n] with a [c] [t].}",
                    {"n": name, "c": (c := random.choice(COLOURS)), "t": what, "p": (p := pools.city(random))})  # fmt: skip
    question, answer = random.choice(
        (
            (f"Where does the person live?", f"{name} lives in {p}."),
            (f"What does {name} have?", f"{name} has a {c} {what}."),
            (f"What colour is the {what}?", f"The {what} is {c}."),
            ("What is the person's name?", f"The person's name is {name}."),
        )
    )
    return Task(f"{sentence} {question}", answer, "The answer is in the sentence.", "reading")


def reading(random: Random, pools: Pools) -> Task:
    """A story and a question about it."""
    story = stories.tell(random, pools)
    question, answer = random.choice(story.facts)
    prompt = fill(random, "{Read this story and answer the question.|Here is a story.|Story:}") + f"\n\n{story.text}\n\n" + fill(random, "{Question: |}") + question
    return Task(prompt, answer, "I look for it in the story. " + answer, "reading")
