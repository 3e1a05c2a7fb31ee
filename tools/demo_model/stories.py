"""Short stories whose facts stay consistent: who, what, where and how many are drawn once and kept.

Owns the cast, openings, shared beats and endings; `story_plots` owns what happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from grammar import article, sentence
from lexicon import (
    ANIMALS,
    COLOURS,
    COUNT_FOODS,
    FOODS,
    PETS,
    SETTINGS,
    SPOTS,
    THINGS,
    TRAITS,
    Pools,
)


@dataclass(frozen=True)
class Being:
    """Someone in a story."""

    name: str
    kind: str
    pronouns: tuple[str, str, str]

    @property
    def is_child(self) -> bool:
        """Whether this is a person and not an animal."""
        return self.kind in ("girl", "boy")


class Cast:
    """Everything a story may mention, drawn once; `say` fills templates from it."""

    def __init__(self, random: Random, pools: Pools, fixed: dict[str, str] | None = None) -> None:
        self.random = random
        self.pools = pools
        fixed = fixed or {}
        used: set[str] = set()
        self.hero = self._being(used, fixed.get("kind"), fixed.get("name"))
        self.friend = self._being(used)
        self.other = self._being(used)
        colour = random.choice(COLOURS)
        noun = fixed.get("noun") or random.choice(THINGS)
        hard = noun in WOODEN
        look = fixed.get("look") or random.choice((colour, colour, "wooden" if hard else "little"))
        spots = random.sample(SPOTS, 4)
        foods = random.sample(FOODS, 2)
        single = random.sample(WHOLE_FOODS, 2)
        elder, elder_he = random.choice(
            (
                ("grandmother", "she"), ("grandfather", "he"), ("mother", "she"),
                ("father", "he"), ("aunt", "she"), ("uncle", "he"),
            )
        )  # fmt: skip
        helper, helper_he = random.choice(
            (
                ("the baker", "she"), ("the postman", "he"), ("the old fisherman", "he"),
                ("the miller", "he"), ("the teacher", "she"), ("the gardener", "she"),
                ("the shepherd", "he"), ("an old woman with a cane", "she"),
                ("a wise old owl", "she"), ("a big grey goose", "she"), ("a slow old turtle", "he"),
                ("the librarian", "she"), ("the ferryman", "he"), ("a little blue bird", "she"),
            )
        )  # fmt: skip
        the_helper = "the " + helper.split(" ", 1)[1].removesuffix(" with a cane")
        traits = random.sample(TRAITS, 3)
        self.slots = {
            "noun": noun, "look": look, "thing": f"{look} {noun}",
            "a_thing": article(f"{look} {noun}"), "colour": colour,
            "trait": fixed.get("trait") or traits[0], "trait2": traits[1], "ftrait": traits[2],
            "setting": fixed.get("setting") or random.choice(SETTINGS),
            "spot": fixed.get("spot") or spots[0], "spot2": spots[1], "spot3": spots[2],
            "spot4": spots[3],
            "food": foods[0], "food2": foods[1], "a_food": article(single[0]),
            "a_food2": article(single[1]), "elder": elder, "ehe": elder_he,
            "ehis": "her" if elder_he == "she" else "his",
            "ehim": "her" if elder_he == "she" else "him",
            "helper": helper, "the_helper": the_helper, "hhe": helper_he,
            "hhim": "her" if helper_he == "she" else "him",
            "hhis": "her" if helper_he == "she" else "his",
            "weather": random.choice(WEATHER), "day": random.choice(DAYS),
            "said": "{said|said|said|answered|replied|whispered|called}",
            "asked": "{asked|asked|asked|wondered|wanted to know}",
            "happy": "{happy|glad|very happy|so happy|full of joy|delighted}",
            "sad": "{sad|very sad|unhappy|worried|upset}",
        }  # fmt: skip
        self._bind("", self.hero)
        self._bind("f", self.friend)
        self._bind("o", self.other)

    def _bind(self, prefix: str, being: Being) -> None:
        he, him, his = being.pronouns
        key = {"": "hero", "f": "friend", "o": "other"}[prefix]
        self.slots |= {
            key: being.name, f"{prefix}he": he, f"{prefix}him": him, f"{prefix}his": his,
            f"{prefix}kind": being.kind, f"{prefix}a_kind": article(being.kind),
            f"{prefix}self": f"{him}self",
        }  # fmt: skip

    def _being(
        self, used: set[str], kind: str | None = None, name: str | None = None
    ) -> Being:
        random = self.random
        if kind is None:
            kind = random.choice(("girl", "boy", "girl", "boy", random.choice(ANIMALS), random.choice(ANIMALS)))
        pool = {"girl": self.pools.girls, "boy": self.pools.boys}.get(kind, PETS)
        while name is None or name in used:
            name = random.choice(pool)
        used.add(name)
        she = kind == "girl" or (kind != "boy" and random.random() < 0.5)
        return Being(name, kind, ("she", "her", "her") if she else ("he", "him", "his"))

    def say(self, template: str, **more: str) -> str:
        """Expands a template with this cast."""
        return sentence(self.random, template, self.slots | more)

    def maybe(self, chance: float, *templates: str) -> list[str]:
        """One of the templates with some chance, else nothing."""
        if self.random.random() >= chance:
            return []
        return [self.say(self.random.choice(templates))]

    def one(self, *templates: str) -> str:
        """One of the templates."""
        return self.say(self.random.choice(templates))

    def counted(self, low: int = 2, high: int = 9) -> tuple[int, str]:
        """A number and a plural."""
        return self.random.randint(low, high), self.random.choice(list(COUNT_FOODS.values()))


WOODEN = "drum boat spoon basket whistle box doll train flute wagon crown bucket".split()
WHOLE_FOODS = "apple pear plum cherry carrot bun pie cookie muffin pancake nut peach sandwich".split()
WEATHER = (
    "sunny|warm and bright|windy|cold and clear|grey and rainy|foggy|snowy|mild and still|hot|fresh"
).split("|")
DAYS = (
    "one morning|one day|one afternoon|one fine day|one Saturday|one Sunday morning|"
    "early one morning|one summer day|one autumn afternoon|one winter evening|"
    "on the first day of spring|one rainy day"
).split("|")

OPENINGS = (
    "Once upon a time, there was [a_trait_kind] named [hero]. [he] lived [setting].",
    "Once upon a time, [a_trait_kind] named [hero] lived [setting].",
    "Once upon a time, [setting], there lived [a_trait_kind]. [his] name was [hero].",
    "There was once [a_trait_kind] called [hero], who lived [setting].",
    "[setting], there lived [a_trait_kind] named [hero].",
    "[hero] was [a_trait_kind] who lived [setting].",
    "Long ago, [setting], lived [a_trait_kind] by the name of [hero].",
    "In the days when the roads were still quiet, [a_trait_kind] named [hero] lived [setting].",
    "This is the story of [hero], [a_trait_kind] who lived [setting].",
)
ABOUT_HERO = (
    "[hero] was always [trait2], and everybody liked [him].",
    "Everyone said that [hero] was {very|really|quite} [trait2].",
    "More than anything, [hero] loved [food].",
    "[he] liked {to look at the stars|the smell of fresh bread|to splash in puddles|to count clouds|"
    "stories about the sea|quiet evenings by the fire}.",
    "[he] had a {good|dear|close} friend, [fa_kind] named [friend].",
    "[his] best friend was [friend], {who was very [ftrait]|[fa_kind] with a big smile|"
    "[fa_kind] from next door}.",
    "Every day [he] {played outside until the sun went down|went for a walk with [friend]|"
    "helped [his] [elder] with the work|sang a little song on the way to the well}.",
)
LESSONS = (
    "From that day on, [hero] {knew|remembered} that {a friend is worth more than any treasure|"
    "it is good to ask for help|being brave does not mean never being afraid|"
    "kind words open many doors|sharing makes good things better|it always helps to try once more}.",
    "And that is how [hero] learned {to be patient|to trust a friend|to tell the truth|"
    "that small acts can matter a lot|to look twice before giving up}.",
    "[hero] never forgot that day.",
    "That night, [hero] fell asleep with a smile.",
    "When the moon came up, [hero] was already {fast asleep|dreaming}, and all was well.",
    "And they all lived happily {ever after|for a long, long time}.",
    "It had been a very good day.",
    "\"What a day,\" [said] [hero], and [he] yawned and closed [his] eyes.",
)


def opening(cast: Cast, friend_comes_later: bool) -> list[str]:
    """The first sentences: who and where, then a little about the hero."""
    size = cast.random.choice(("little", "young", "small", ""))
    kind = " ".join(part for part in (cast.slots["trait"], size, cast.hero.kind) if part)
    if cast.random.random() < 0.4:
        kind = " ".join(part for part in (size, cast.hero.kind) if part)
    cast.slots["a_trait_kind"] = article(kind)
    lines = [cast.one(*OPENINGS)]
    if cast.random.random() < 0.7:
        lines.append(cast.one(*(ABOUT_HERO[:4] if friend_comes_later else ABOUT_HERO)))
    return lines


def ending(cast: Cast) -> list[str]:
    """The last sentences."""
    return [cast.one(*LESSONS)]


@dataclass(frozen=True)
class Story:
    """A finished story and the facts that a reader could be asked about."""

    text: str
    hero: Being
    facts: list[tuple[str, str]]


def tell(random: Random, pools: Pools, fixed: dict[str, str] | None = None) -> Story:
    """Tells one story.

    Args:
        random: Source of all choices.
        pools: Which names may appear.
        fixed: Parts of the cast that the caller has already decided.

    Returns:
        The story with questions and answers about it.
    """
    from story_plots import PLOTS

    cast = Cast(random, pools, fixed)
    plot = random.choice(PLOTS)
    start = opening(cast, plot.__name__ == "new_friend")
    paragraphs, facts = plot(cast)
    paragraphs = [start, *paragraphs]
    if random.random() < 0.85:
        paragraphs.append(ending(cast))
    if random.random() < 0.35:
        flat = [line for paragraph in paragraphs for line in paragraph]
        paragraphs = [flat]
    text = "\n\n".join(" ".join(paragraph) for paragraph in paragraphs)
    facts = [
        *facts,
        (f"Where did {cast.hero.name} live?", f"{cast.hero.name} lived {cast.slots['setting']}."),
    ]
    return Story(text, cast.hero, facts)
