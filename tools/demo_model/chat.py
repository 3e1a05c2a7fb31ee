"""Conversations without tools: small talk, stories on request, memory, styles set by the system."""

from __future__ import annotations

from random import Random

import facts
import stories
import tasks
from chat_format import Message
from grammar import article, fill
from lexicon import ANIMALS, COLOURS, FOODS, MORE_HEROES, SETTINGS, THINGS, TRAITS, Pools

SELF = "I am the demo model of flash_moe, a small mixture-of-experts language model."
SMALL_TALK = (
    ("{Hi|Hello|Hey|Good morning|Good evening|Hi there|Hello there}{!|.|}", "{Hello! How can I help you?|Hello! What can I do for you?|Hi! How can I help you?}"),
    ("{How are you|How are you today|How do you do}?", "{I am fine, thank you. How can I help you?|I am well, thank you! What can I do for you?}"),
    ("{Who are you|What are you|Tell me about yourself|Introduce yourself|What model are you}?", SELF + " {I run from your disk, one expert at a time.|I was trained to show how the engine works.|I can tell stories, answer simple questions and call tools.}"),
    ("{What is your name|What's your name|Do you have a name}?", "{I am the flash_moe demo model.|You can call me the flash_moe demo model.}"),
    ("{What can you do|How can you help me|What are you good at|Help}?", "I can tell short stories, answer questions about animals, countries and words, do small sums, write JSON and call tools."),
    ("{Are you a human|Are you a person|Are you a robot|Are you alive}?", "No, I am {a small language model|a computer program}."),
    ("{Are you smart|Are you clever|Do you know everything|Are you a big model}?", "I am a very small model. {I know a few things, but not many.|There is a lot that I do not know.}"),
    ("{Who made you|Who trained you|Where do you come from}?", "I was trained by the flash_moe project on text made by a program."),
    ("{Thank you|Thanks|Thank you very much|Thanks a lot}{!|.|}", "{You are welcome!|You are welcome. Is there anything else?|I was glad to help.}"),
    ("{Bye|Goodbye|See you|Good night|See you later}{!|.|}", "{Goodbye!|Goodbye! Have a nice day.|See you soon!}"),
    ("{Can you help me|I need help|Please help me}{?|.}", "{Of course. What do you need?|Yes, gladly. What is it about?}"),
    ("{I am sad|I feel sad|I had a bad day}{.|}", "{I am sorry to hear that. Would you like to hear a story?|I am sorry. Do you want to tell me about it?}"),
    ("{I am happy|I feel great|I had a good day}{.|!}", "{I am glad to hear that!|That is good to hear!}"),
    ("{I am bored|What should I do}{.|?}", "{Would you like to hear a story?|You could go for a walk, read a book or draw a picture.}"),
    ("{Tell me a joke|Do you know a joke|Make me laugh}{.|?}", "{Why did the duck cross the pond? To get to the other bank.|What has four legs and cannot walk? A table.|What do you call a bear in the rain? A wet bear.|What has hands but cannot clap? A clock.}"),
    ("{What do you like|What is your favourite colour}?", "I am a program, so I have no taste of my own. But many people like blue."),
    ("{Write a poem|Write a short poem|Can you write a poem}{.|?}", "{The moon is bright,\\nthe wind is low,\\nthe stars above\\nlike candles glow.|A little bird\\nsat in a tree,\\nit sang a song\\nfor you and me.|The rain comes down\\non hill and town,\\nand in the night\\nthe world turns white.}"),
    ("{How do you work|How does this work}?", "For each token, a router picks eight of my experts. The engine reads them from the disk when they are needed."),
    ("{How many experts do you have|How many experts are in you}?", "I have 48 experts in each layer, and eight of them work on each token."),
    ("{Do you speak other languages|Can you speak German|Do you speak French}?", "I only know simple English."),
    ("{Yes|Okay|Ok|Sure|Good}{.|!|}", "{Good. What would you like to do?|All right. What can I do for you?}"),
    ("{No|No, thanks|Nothing}{.|}", "{All right. Tell me if you need anything.|Okay. I am here if you need me.}"),
)  # fmt: skip
ASKING = "what what's who how do are can where why".split()
UNKNOWN = (
    "Who won the {football|chess|tennis} {cup|match|game} in [y]?|What is the phone number of [n]?|"
    "What did [n] say {yesterday|last week}?|How do I repair {my|a} [w]?|Who is the president of [w]?|"
    "What is the meaning of [w]?|Explain {quantum physics|the theory of relativity|the stock market|tax law}.|"
    "What happened in [y]?|Who wrote [w]?|What is the population of [p]?|How tall is [n]?|"
    "Write a program in {Python|C|Java} that {sorts a list|reads a file|draws a [t]}.|"
    "What is the best {phone|car|computer} {of|in} [y]?|Who is [n]?|What is {a|the} [w]?|Where is [w]?|"
    "When was [n] born?|How old is [n]?|What is the weather like?|What time is it?|What is the news today?"
)
UNKNOWN_ANSWERS = (
    "{I am a small demo model, and I do not know that.|I do not know that. I am only a small demo model.|"
    "I am sorry, I do not know the answer to that.}"
)
STYLES = (
    ("You are a pirate. {Talk like a pirate|Always speak like a pirate}.", lambda t: "Arr! " + t),
    ("{Always end|End every answer} with the word \"meow\".", lambda t: t + " meow"),
    ("{Answer|Always answer|Reply} in capital letters{| only}.", lambda t: t.upper()),
    ("{Begin every answer|Always begin} with \"Of course!\"", lambda t: "Of course! " + t),
    ("You are very polite. {Always say please and thank you|Thank the user for each question}.", lambda t: "Thank you for your question. " + t),
    ("{Start|Begin} each answer with \"Well,\"", lambda t: "Well, " + (t if t.startswith(("I ", "I'")) else t)),
    ("End each answer with \"Have a nice day!\"", lambda t: t + " Have a nice day!"),
)  # fmt: skip
PLAIN_SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a friendly assistant.",
    "You are a kind teacher.", "Answer in one short sentence.", "Be brief.", "Answer the user's questions.",
    "You are a storyteller.", "You are the demo model of flash_moe.", "Be friendly and clear.",
)  # fmt: skip


def small_talk(random: Random) -> tuple[str, str]:
    """A line and a reply."""
    line, reply = random.choice(SMALL_TALK)
    said, answered = fill(random, line), fill(random, reply).replace("\\n", "\n")
    asks = said.split()[0].strip("?.!").lower() in ASKING
    if said[-1] in "?." and asks != said.endswith("?"):
        said = said[:-1] + ("?" if asks else ".")
    if random.random() < 0.12:
        said = said.lower()
    return said, answered


def unknown(random: Random, pools: Pools) -> tuple[str, str]:
    """A question outside the model's world and the honest answer."""
    slots = {
        "y": str(random.randint(1900, 2030)), "n": pools.full_name(random), "t": random.choice(THINGS),
        "w": pools.invented(random).capitalize(), "p": pools.city(random),
    }  # fmt: skip
    return fill(random, "{" + UNKNOWN + "}", slots), fill(random, UNKNOWN_ANSWERS)


def story_request(random: Random, pools: Pools) -> tuple[str, str, str]:
    """A wish for a story, the story, and a plan of it."""
    fixed: dict[str, str] = {}
    wish = fill(random, "{Tell me|Write|Write me|Please tell me|Can you tell me|I want to hear} {a|a short|a little|a nice} story")
    pick = random.random()
    if pick > 0.2:
        kind = random.choice((*ANIMALS, *MORE_HEROES, "girl", "boy", "girl", "boy"))
        fixed["kind"] = kind
        phrase = kind
        if random.random() < 0.4:
            fixed["trait"] = random.choice(TRAITS)
            phrase = f"{fixed['trait']} {kind}"
        wish += fill(random, " {about|with} ") + article(phrase)
        if random.random() < 0.5:
            pool = pools.girls if kind == "girl" else pools.boys if kind == "boy" else None
            fixed["name"] = random.choice(pool) if pool and random.random() < 0.6 else pools.invented(random, 2, 3).capitalize()
            wish += fill(random, " {named|called} ") + fixed["name"]
        if random.random() < 0.35:
            fixed["noun"] = random.choice(THINGS)
            fixed["look"] = random.choice(COLOURS)
            wish += fill(random, " and ") + article(f"{fixed['look']} {fixed['noun']}")
        elif random.random() < 0.25:
            fixed["setting"] = random.choice(SETTINGS)
            wish += f" who lives {fixed['setting']}"
    wish += "?" if wish.startswith("Can") else random.choice((".", ".", "", "!"))
    for _ in range(12):
        story = stories.tell(random, pools, fixed)
        if "noun" not in fixed or fixed["noun"] in story.text:
            break
    plan = f"I will tell a story about {story.hero.name}, {article(story.hero.kind)}."
    if "noun" in fixed:
        plan += f" There must be {article(fixed['look'] + ' ' + fixed['noun'])} in it."
    return wish, story.text, plan


def memory(random: Random, pools: Pools) -> list[Message]:
    """The user says something about themselves and asks for it later."""
    name, thing = pools.first_name(random), random.choice(THINGS)
    colour, food, city = random.choice(COLOURS), random.choice(FOODS), pools.city(random)
    code = pools.code(random)
    told = [
        ("{My name is|I am|I'm|You can call me} [x].", name, "{What is my name|Do you remember my name|Who am I|What's my name}?", "{Your name is [x].|You are [x].}", "{Nice to meet you, [x]!|Hello, [x]! How can I help you?}"),
        ("{I live in|I come from|My home is} [x].", city, "{Where do I live|Which city do I live in|Where am I from}?", "You live in [x].", "{[x] sounds nice.|I will remember that.}"),
        ("{My favourite colour is|I like the colour} [x].", colour, "{What is my favourite colour|Which colour do I like}?", "Your favourite colour is [x].", "{[x] is a nice colour.|I will remember that.}"),
        ("{I like to eat|My favourite food is|I love} [x].", food, "{What do I like to eat|What is my favourite food}?", "{You like [x].|Your favourite food is [x].}", "{That sounds good.|I will remember that.}"),
        ("{My code is|The code is|Remember the code} [x].", code, "{What is the code|What was the code|Tell me the code}?", "The code is [x].", "{I will remember it.|All right.}"),
        ("{I have|I own|I just bought} " + article(thing) + ".", thing, "What do I have?", "You have " + article("[x]" if thing[0] not in "aeiou" else "[x]").replace("a [x]", article(thing)).replace("an [x]", article(thing)) + ".", "{That is nice.|Very good.}"),
    ]  # fmt: skip
    chosen = random.sample(told, random.choice((1, 1, 2, 2, 3)))
    messages: list[Message] = []
    for statement, x, _, _, reply in chosen:
        answered = fill(random, reply, {"x": x})
        messages.append({"role": "user", "content": fill(random, statement, {"x": x})})
        messages.append({"role": "assistant", "content": answered[0].upper() + answered[1:]})
        if random.random() < 0.35:
            asked, answer = facts.question(random) if random.random() < 0.7 else small_talk(random)
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    _, x, question, answer, _ = random.choice(chosen)
    messages.append({"role": "user", "content": fill(random, question)})
    messages.append({"role": "assistant", "content": fill(random, answer, {"x": x}), "reasoning_content": "The user told me this before."})
    return messages


def turn(random: Random, pools: Pools) -> tuple[str, str, str]:
    """One question, its answer, and a thought."""
    pick = random.random()
    if pick < 0.34:
        asked, answer = facts.question(random)
        return asked, answer, fill(random, "{The user asks|This is a question}: {[q]} {I know this|This is in my table}.", {"q": asked})
    if pick < 0.5:
        task = tasks.arithmetic(random, pools)
        return task.prompt, task.answer, task.thought
    if pick < 0.64:
        task = tasks.copying(random, pools)
        return task.prompt, task.answer, task.thought
    if pick < 0.78:
        asked, answer = small_talk(random)
        return asked, answer, "The user is talking to me. I answer in a friendly way."
    if pick < 0.85:
        asked, answer = unknown(random, pools)
        return asked, answer, "I do not know this, so I say so."
    return story_request(random, pools)


def conversation(random: Random, pools: Pools) -> list[Message]:
    """A conversation of one to four turns; the last may think."""
    if random.random() < 0.16:
        messages = memory(random, pools)
        if random.random() < 0.6:
            messages[-1].pop("reasoning_content")
        if random.random() < 0.2:
            messages.insert(0, {"role": "system", "content": random.choice(PLAIN_SYSTEMS)})
        return messages
    messages = []
    style = None
    if random.random() < 0.14:
        line, style = random.choice(STYLES)
        messages.append({"role": "system", "content": fill(random, line)})
    elif random.random() < 0.08:
        name = pools.invented(random).capitalize()
        messages.append({"role": "system", "content": fill(random, "{Your name is [n].|You are [n], a helpful assistant.|You are called [n].}", {"n": name})})
        asked = fill(random, "{Who are you|What is your name|What's your name|Hello, who are you}?")
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": f"My name is {name}. How can I help you?"})
        return messages
    elif random.random() < 0.3:
        messages.append({"role": "system", "content": random.choice(PLAIN_SYSTEMS)})
    turns = random.choice((1, 1, 1, 2, 2, 3, 4))
    think = random.random() < 0.35
    for i in range(turns):
        asked, answer, thought = turn(random, pools)
        if style and len(answer) < 300:
            answer = style(answer)
        messages.append({"role": "user", "content": asked})
        message: Message = {"role": "assistant", "content": answer}
        if think and i == turns - 1:
            message["reasoning_content"] = thought
        messages.append(message)
    return messages


def task_conversation(random: Random, task: tasks.Task) -> list[Message]:
    """A single task as a conversation, sometimes with thinking."""
    messages: list[Message] = []
    if task.system:
        messages.append({"role": "system", "content": task.system})
    elif random.random() < 0.2:
        messages.append({"role": "system", "content": random.choice(PLAIN_SYSTEMS[:4])})
    messages.append({"role": "user", "content": task.prompt})
    message: Message = {"role": "assistant", "content": task.answer}
    if random.random() < 0.35:
        message["reasoning_content"] = task.thought
    messages.append(message)
    return messages
