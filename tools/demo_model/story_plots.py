"""What happens in the stories: each plot takes a cast and returns paragraphs and checkable facts."""

from __future__ import annotations

from collections.abc import Callable

from grammar import article, listing
from lexicon import ANIMALS, COUNT_FOODS, PETS, THINGS
from stories import Cast

Told = tuple[list[list[str]], list[tuple[str, str]]]
SEEK = (
    "First [he] looked [spot2], but {it was not there|there was nothing but {dust|leaves|an old shoe}}.",
    "[he] searched [spot2]. {Nothing|No [noun]}.",
    "[hero] ran to look [spot2], but the [noun] was not there.",
)
SEEK_AGAIN = (
    "Then [he] looked [spot3]. {It was not there either|There was no [noun] there}.",
    "Next [he] tried [spot3], but {found only a sleeping cat|all [he] found was a rusty nail|"
    "the [noun] was not there}.",
    "After that [he] went to look [spot3]. Still nothing.",
)
COMFORT = (
    '"{Do not worry|Do not cry|Cheer up}," said [friend]. "{We will find a way|I will help you|'
    'Two heads are better than one|We can do it together}."',
    '[friend] {sat down next to [him]|put an arm around [him]|came running}. "{What is wrong|'
    'Why are you so sad|What happened}?" [fhe] asked.',
)


def lost_and_found(cast: Cast) -> Told:
    """The hero loses a thing, looks in two wrong places and finds it with help."""
    first = [
        cast.one(
            "[hero] had [a_thing] that [he] {loved|liked} more than anything else.",
            "For [his] birthday, [he] had been given [a_thing] by [his] [elder].",
            "[his] favourite thing in the whole world was [a_thing].",
            "[he] took [his] [thing] everywhere [he] went.",
        ),
        cast.one(
            "But [day], the [noun] was gone.",
            "Then, [day], [he] could not find it anywhere.",
            "[day], [he] woke up and saw that the [noun] was {missing|gone}.",
        ),
    ]
    second = [
        cast.one(
            '"Where is my [noun]?" [hero] cried.',
            '"Oh no," said [hero]. "I have lost my [thing]!"',
            "[hero] felt [sad]. [he] {did not know what to do|wanted to cry|sat down on a stone}.",
        ),
        cast.one(*SEEK),
        cast.one(*SEEK_AGAIN),
    ]
    third = [
        cast.one(
            "On the way home, [he] met [helper].",
            "Just then [helper] came along the path.",
            "At last [hero] went to ask [helper].",
        ),
        cast.one(
            '"Have you seen my [thing]?" asked [hero].',
            '"I am looking for my [noun]," said [hero]. "It is [look]."',
            '"Please, can you help me find my [thing]?" [hero] asked.',
        ),
        cast.one(
            '"{Yes|I think so|Let me think}," [hhe] said. "I saw {something [look]|[a_thing]|it} [spot]."',
            '"Something [look] is lying [spot]," [hhe] said. "Maybe that is it."',
            '"Have you looked [spot]?" [hhe] asked. "That is where I {lose|find} things."',
        ),
        cast.one(
            "[hero] {ran|hurried|went} as fast as [he] could, and there, [spot], was the [noun]!",
            "So [hero] went to look. There it was, [spot]: the [thing]!",
            "And it was true. The [thing] was [spot].",
        ),
    ]
    last = [
        cast.one(
            '"{Thank you|Thank you so much|Oh, thank you}!" [hero] {said|called|shouted}.',
            "[hero] was [happy]. [he] went back and thanked [the_helper].",
            "[hero] {hugged|held} the [noun] and {laughed|danced|jumped for joy}.",
        ),
        *cast.maybe(
            0.6,
            "After that, [he] always {put|kept} the [noun] in a safe place.",
            "To say thank you, [he] gave [hhim] [a_food].",
            "[he] tied a {ribbon|string} to the [noun] so that it would never get lost again.",
        ),
    ]
    name, s = cast.hero.name, cast.slots
    return [first, second, third, last], [
        (f"What did {name} lose?", f"{name} lost {s['a_thing']}."),
        (f"Where was the {s['noun']}?", f"The {s['noun']} was {s['spot']}."),
        (f"Who helped {name}?", f"{s['helper'][0].upper()}{s['helper'][1:]} helped {name}."),
    ]


def saving_up(cast: Cast) -> Told:
    """The hero earns coins in two or three jobs until they make the price."""
    parts = [cast.random.randint(1, 6) for _ in range(cast.random.choice((2, 3)))]
    price, s = sum(parts), cast.slots
    jobs = cast.random.sample(
        [
            "sweeping the yard", "carrying water", "feeding the hens", "picking apples",
            "washing the cart", "watering the flowers", "chopping carrots", "stacking wood",
            "brushing the pony", "delivering letters", "cleaning the windows", "finding lost buttons",
        ],
        len(parts),
    )  # fmt: skip
    coins = ["one coin" if n == 1 else f"{NUMBERS[n]} coins" for n in parts]
    first = [
        cast.one(
            "[day], [hero] saw [a_thing] in the window of a shop.",
            "There was [a_thing] in the shop by the square, and [hero] {wanted|wished for} it very much.",
        ),
        cast.say(
            "It cost {exactly |}[price] coins, but [hero] {had no money|did not have a single coin|"
            "had nothing in [his] pockets}.",
            price=NUMBERS[price],
        ),
        cast.one(
            '"{Then I will earn it|I will work for it|I can save up}," said [hero].',
            '"If you want it, you can work for it," said [his] [elder].',
        ),
    ]
    second, total = [], 0
    for i, (job, coin, n) in enumerate(zip(jobs, coins, parts, strict=True)):
        lead = ("First", "Then", "{At last|Last of all|In the end}")[i if i < 2 else 2]
        total += n
        second.append(
            cast.say(
                lead + " [he] earned [coin] for [job]{| for [who]}.",
                coin=coin, job=job, who=cast.random.choice(("a neighbour", "[his] [elder]", "[helper]")),
            )  # fmt: skip
        )
        if 0 < i < len(parts) - 1 or (i == 1 and len(parts) == 3):
            second.append(cast.say("Now [he] had [total] coins.", total=NUMBERS[total]))
    third = [
        cast.say("[he] counted the coins: {[total]!|there were [total]. That was enough!}", total=NUMBERS[price]),
        cast.one(
            "[he] ran to the shop, put the coins on the counter and bought the [thing].",
            "The very next day, the [thing] was [his]{| at last}.".replace("was [his]", "belonged to [him]"),
        ),
        cast.one(
            "[hero] was {proud|[happy]}, because [he] had earned it [self].",
            '"I worked for it," [he] told [friend], "and that makes it even better."',
        ),
    ]
    name = cast.hero.name
    return [first, second, third], [
        (f"What did {name} buy?", f"{name} bought {s['a_thing']}."),
        (f"How many coins did the {s['noun']} cost?", f"The {s['noun']} cost {NUMBERS[price]} coins."),
        (f"What did {name} do first to earn money?", f"First {name} earned {coins[0]} for {jobs[0]}."),
    ]


NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()


def new_friend(cast: Cast) -> Told:
    """A shy newcomer is won over by sharing."""
    first = [
        cast.one(
            "[day], [fa_kind] named [friend] moved in next door.",
            "[day], [hero] saw someone new [spot]. It was [fa_kind] named [friend].",
            "[day], while [hero] was playing [spot], [fa_kind] came by. [fhis] name was [friend].",
        ),
        cast.one(
            "[friend] was very shy and did not say a word.",
            "[friend] stood there and looked at the ground.",
            "[friend] did not know anyone yet, and [fhe] looked lonely.",
        ),
    ]
    second = [
        cast.one(
            '"Hello," said [hero]. "{Do you want to play|Would you like to play with me|Are you new here}?"',
            "[hero] smiled and waved, but [friend] only {shook|turned} [fhis] head.".replace(
                "{shook|turned}", "shook"
            ),
        ),
        cast.one(
            "[friend] hid behind a tree.",
            "[friend] took a small step back.",
            "But [friend] was too shy to answer.",
        ),
        cast.one(
            "So [hero] {had|thought of} {an idea|a plan}. [he] {fetched|brought} [a_food] and broke it in two.",
            "Then [hero] took [a_food] out of [his] bag. [he] put one half on a stone and ate the other.",
        ),
        cast.one(
            '"This half is for you," [he] said.',
            '"I have more than I need," [he] said. "Please take some."',
        ),
    ]
    third = [
        cast.one(
            "Slowly, [friend] came closer. [fhe] took a bite and began to smile.",
            'At last [friend] came out. "Thank you," [fhe] said softly. "I like [food]."',
        ),
        cast.one(
            "Soon they were {laughing|talking} like old friends.",
            "They played with [hero]'s [thing] until {dinner time|it was dark|the stars came out}.",
            "They {climbed|ran up} the hill together and {watched the clouds|rolled all the way down}.",
        ),
        *cast.maybe(0.6, "From then on, [hero] and [friend] {met|played together} every day."),
    ]
    name, friend, s = cast.hero.name, cast.friend.name, cast.slots
    return [first, second, third], [
        (f"What did {name} share with {friend}?", f"{name} shared {s['a_food']} with {friend}."),
        (f"Why did {friend} not answer?", f"{friend} was shy."),
    ]


def stuck(cast: Cast) -> Told:
    """Somebody is stuck; two tries fail and the third idea works."""
    problems = (
        ("[other] the [okind] was stuck in the mud", "a long rope", "pulled and pulled"),
        ("a little bird had fallen out of its nest", "a tall ladder", "climbed up step by step"),
        ("a cart full of hay had lost a wheel", "a strong branch", "lifted the cart bit by bit"),
        ("[other] the [okind] could not get down from the wall", "a soft blanket", "held it tight"),
        ("the bridge over the stream was broken", "a wide plank", "laid it across the water"),
        ("the door of the old mill would not open", "a drop of oil", "rubbed it on the lock"),
    )
    problem, tool, act = cast.random.choice(problems)
    first = [
        cast.say("[day], [hero] and [friend] {heard a noise|heard a cry|stopped on the road}."),
        cast.say("They {saw|found out} that " + problem + "."),
        cast.one('"We have to help!" said [hero].', '"What can we do?" asked [friend].'),
    ]
    second = [
        cast.one(
            "[friend] tried first, but [fhe] was not strong enough.",
            "First they called for help, but nobody {heard them|came}.",
        ),
        cast.one(
            "Then [hero] tried alone, but it did not work.",
            "Then they tried with a stick, but the stick broke.",
        ),
        cast.say(
            "[hero] sat down to think. \"I know!\" [he] said {at last|after a while}. "
            f'"We need {tool}."'
        ),
    ]
    third = [
        cast.say(
            "{They borrowed|[helper] gave them|[friend] ran home and came back with} "
            + tool
            + f". Together they {act}, {{and it worked|and this time it worked|until all was well}}."
        ),
        cast.one(
            "Everyone cheered.",
            '"You are {clever|wonderful|true friends}!" said [helper].',
            '"We make a good team," said [friend], and [hero] {nodded|laughed}.',
        ),
    ]
    return [first, second, third], [
        (f"What did {cast.hero.name} and {cast.friend.name} use?", f"They used {tool}."),
    ]


def honesty(cast: Cast) -> Told:
    """Something breaks, the truth is told, and it is mended."""
    item, mend = cast.random.choice(
        (
            ("vase", "glue"), ("teapot", "glue"), ("window", "a new pane of glass"),
            ("chair", "a hammer and two nails"), ("fence", "a hammer and some nails"),
            ("clock", "a tiny screwdriver"), ("picture frame", "glue"), ("kite", "paper and paste"),
        )
    )  # fmt: skip
    first = [
        cast.say(f"[day], [hero] was playing with [his] [thing] in the house of [his] [elder]."),
        cast.say(
            f"[he] {{turned around too fast|was not careful|ran a little too fast}}, and "
            f"{{crash|bang|oh no}}! The {item} {{fell down and broke|was broken}}."
        ),
    ]
    second = [
        cast.one(
            "[hero] was afraid. Should [he] hide the pieces?",
            "[hero]'s heart beat fast. Nobody had seen it.",
            '"What will happen now?" thought [hero].',
        ),
        cast.one(
            "[friend] looked at [him]. \"{It is better to tell the truth|Tell the truth|"
            'You should say what happened}," [fhe] said.',
            "But [he] knew that hiding it would be wrong.",
        ),
        cast.say(
            f'So [hero] went to [his] [elder]. "I am sorry," [he] said. "I broke the {item}."'
        ),
    ]
    third = [
        cast.say(
            "[his] [elder] {was quiet for a moment|looked at [him] for a long time}. "
            '"Thank you for telling me{| the truth}," [ehe] said. "{We can fix it|Let us mend it together}."'
        ),
        cast.say(
            f"They took {mend} and {{worked all afternoon|went to work}}, and {{soon|in the evening}} "
            f"the {item} was {{whole again|as good as new|almost as good as new}}."
        ),
        cast.one("[hero] felt {light as a feather|much better}.", "[hero] felt {glad|happy} that [he] had told the truth."),
    ]
    name = cast.hero.name
    return [first, second, third], [
        (f"What did {name} break?", f"{name} broke the {item}."),
        ("How was it fixed?", f"They fixed it with {mend}."),
    ]


def building(cast: Cast) -> Told:
    """Friends build something out of three materials; a storm tests it."""
    what = cast.random.choice("tree house|raft|bridge|small hut|bird house|boat|fort|swing".split("|"))
    parts = cast.random.sample(
        "planks|ropes|nails|branches|leaves|stones|old boxes|straw|a barrel|a blanket".split("|"), 3
    )
    first = [
        cast.say(f"[day], [hero] {{had an idea|said to [friend], \"I have an idea\"}}.".replace('"I', '"I')),
        cast.say(f'"Let us build {article(what)}!" [he] said.'),
        cast.say(f"They {{needed|gathered|looked for}} {listing(parts)}."),
    ]
    second = [
        cast.say(f"[hero] {{brought|carried}} the {bare(parts[0])}, and [friend] {{brought|fetched}} the {bare(parts[1])}."),
        cast.say(f"[helper] gave them the {bare(parts[2])}."),
        cast.one("They worked all day.", "It was hard work, but they {sang|laughed} the whole time."),
        cast.say(f"In the evening the {what} was {{ready|finished}}."),
    ]
    storm = cast.random.random() < 0.6
    third = (
        [
            cast.say("That night, a storm came. The wind {howled|blew} and the rain fell hard."),
            cast.say(f"In the morning, the {what} was {{broken|in pieces}}. [friend] was [sad]."),
            cast.say('"We {know|have learned} how to do it now," said [hero]. "{Let us|We will} build it again, and stronger."'),
            cast.say(f"So they did, and the second {what} stood for many years."),
        ]
        if storm
        else [
            cast.say(f'"It is the best {what} in the world," said [friend].'),
            cast.say("They ate [food] to celebrate."),
        ]
    )
    return [first, second, third], [
        (f"What did {cast.hero.name} and {cast.friend.name} build?", f"They built {article(what)}."),
        ("What did they need for it?", f"They needed {listing(parts)}."),
    ]


def bare(noun: str) -> str:
    """Without its article."""
    return noun.removeprefix("a ").removeprefix("an ")


def contest(cast: Cast) -> Told:
    """A race or contest, practised for and won or lost with grace."""
    what, practise = cast.random.choice(
        (
            ("the big race", "ran around the pond"), ("the singing contest", "sang to the cows"),
            ("the swimming race", "swam across the lake"), ("the kite contest", "flew a kite"),
            ("the baking contest", "baked a small cake"), ("the drawing contest", "drew a picture"),
        )
    )  # fmt: skip
    wins = cast.random.random() < 0.5
    first = [
        cast.say(f"Every year there was {what}, and [hero] wanted to {{win|take part}}."),
        cast.say('"You are too {small|young|slow}," said [other] the [okind]. "You will never win."')
        if not cast.other.is_child
        else cast.say('"You are too {small|young|slow}," said [other]. "You will never win."'),
        cast.say(f"But [hero] did not give up. {{Every morning|Every day}} [he] {practise}."),
    ]
    second = [
        cast.say("At last the day came. It was [weather], and {the whole village|everyone} came to watch."),
        cast.say("[hero] was {nervous|a little afraid}, but [friend] called, \"{You can do it|Just do your best}!\""),
    ]
    third = (
        [
            cast.say("[hero] {did [his] very best|gave everything [he] had}, and {in the end|to everyone's surprise} [he] won!"),
            cast.say('"I was wrong," said [other]. "{You were great|Well done}." And they shook hands.'),
        ]
        if wins
        else [
            cast.say("[hero] {did [his] very best|gave everything [he] had}, but in the end [other] won."),
            cast.say('[hero] {smiled|took a deep breath}. "Well done," [he] said to [other]. "{I had fun|Next year I will try again}."'),
            cast.say("[other] was surprised. \"You are a good {sport|friend},\" [ohe] said, and {shared|split} the prize, [a_food], with [him]."),
        ]
    )
    winner = cast.hero.name if wins else cast.other.name
    return [first, second, third], [
        ("Who won?", f"{winner} won."),
        (f"What did {cast.hero.name} do every day?", f"Every day {cast.hero.name} {practise}."),
    ]


def fear(cast: Cast) -> Told:
    """The hero is afraid of something and finds out what it really is."""
    scare, truth = cast.random.choice(
        (
            ("a strange knocking at the window", "a branch moving in the wind"),
            ("a long shadow on the wall", "a coat on a chair"),
            ("two bright eyes in the dark", "a little cat"),
            ("a deep rumbling sound", "[his] [elder], who was snoring"),
            ("a white shape [spot]", "a shirt on the washing line"),
            ("a scratching noise under the floor", "a family of mice"),
        )
    )
    first = [
        cast.one("[hero] was afraid of the dark.", "There was one thing [hero] did not like: the night."),
        cast.say(f"[day], after dark, [he] {{saw|noticed}} {scare}.".replace("saw|noticed", "heard")
                 if ("sound" in scare or "knock" in scare or "noise" in scare)
                 else f"[day], after dark, [he] saw {scare}."),
        cast.one('"What is that?" [he] whispered.', "[he] pulled the blanket over [his] head."),
    ]
    second = [
        cast.one(
            '[friend] was there too. "{Let us look together|I will go with you}," [fhe] said.',
            '"If I never look, I will always be afraid," thought [hero].',
        ),
        cast.one("[he] took a lantern and went closer, step by step.", "[hero] {lit a candle|took a deep breath} and {went closer|opened the door}."),
        cast.say(f"And what was it? It was {{only|just}} {truth}!"),
    ]
    third = [
        cast.one("[hero] laughed until [his] belly hurt.", '"So that was it!" [he] said, and laughed.'),
        cast.one("After that, the dark was not so bad.", "That night [he] slept very well.", "[he] was not afraid any more."),
    ]
    return [first, second, third], [
        (f"What was {cast.hero.name} afraid of?", f"{cast.hero.name} was afraid of the dark."),
        ("What was it really?", cast.say(f"It was {truth}.")),
    ]


def baking(cast: Cast) -> Told:
    """An ingredient is missing, a neighbour helps, and everyone shares."""
    dish = cast.random.choice("apple pie|honey cake|bread|plum cake|berry pie|carrot soup|cookies|pancakes".split("|"))
    have = cast.random.sample("flour|eggs|milk|butter|salt|honey|sugar|nuts".split("|"), 4)
    missing = have.pop()
    first = [
        cast.say(f"[day], [hero] wanted to make {dish} for [friend]'s birthday."),
        cast.say(f"[he] {{looked in the cupboard and found|had}} {listing(have)}, but there was no {missing}."),
    ]
    second = [
        cast.say(f'So [he] {{went to|asked}} [helper]. "{{May I|Can I}} have some {missing}, please?" [he] asked.'
                 .replace("{went to|asked}", "went to")),
        cast.say(f'"Of course," [hhe] said and gave [him] {{a small bag of |some }}{missing}.'
                 .replace("{a small bag of |some }", "some ")),
        cast.say("[hero] went home, {mixed everything in a big bowl|rolled up [his] sleeves} and {set to work|began}."),
        cast.one("Soon the whole house smelled wonderful.", "When it was ready, it {looked|smelled} {wonderful|delicious}."),
    ]
    third = [
        cast.say(f"[friend] was [happy]. \"{{This is the best birthday ever|You made {dish} for me}}!\" [fhe] said."),
        cast.say("They invited [the_helper] too, and {everyone had a piece|there was enough for all}."
                 if "soup" not in dish else "They invited [the_helper] too, and there was enough for all."),
    ]
    return [first, second, third], [
        (f"What did {cast.hero.name} make?", f"{cast.hero.name} made {dish}."),
        ("What was missing?", f"There was no {missing}."),
        ("Whose birthday was it?", f"It was {cast.friend.name}'s birthday."),
    ]


def garden(cast: Cast) -> Told:
    """A seed grows over days, and patience pays."""
    plant = cast.random.choice("pumpkin|sunflower|rose|bean|apple tree|tomato plant|melon".split("|"))
    colour = cast.slots["colour"]
    first = [
        cast.say(f"[day], [helper] gave [hero] a tiny seed. \"Plant it and be patient,\" [hhe] said."),
        cast.say("[hero] {dug a small hole|made a hole in the ground} [spot], put the seed in and {gave it water|watered it}."),
    ]
    second = [
        cast.say("On the first day, nothing happened. On the second day, nothing happened either."),
        cast.one('"Maybe it is asleep," said [friend].', '"It will never grow," said [friend]. But [hero] {kept on|did not stop} watering it.'),
        cast.say("Then, {one morning|on the {sixth|seventh|ninth|tenth} day}, there was a {tiny|little} green leaf!"),
        cast.say("{It grew and grew|Week after week it grew}, {and in summer|until} it was {taller|bigger} than [hero]."),
    ]
    third = [
        cast.say(f"It was {article(plant)}, the {{biggest|finest|most beautiful}} in the whole {{valley|village|land}}."),
        cast.say("[hero] was proud, and [he] {shared it with everyone|showed it to [his] [elder]|invited [friend] to sit in its shade}."),
    ]
    del colour
    return [first, second, third], [
        ("What did the seed become?", f"It became {article(plant)}."),
        (f"Who gave {cast.hero.name} the seed?", cast.say("[helper] gave [him] the seed.")),
    ]


def taking_turns(cast: Cast) -> Told:
    """Two want one thing, quarrel, and learn to take turns."""
    first = [
        cast.say("[day], [hero] and [friend] found [a_thing] [spot]."),
        cast.say('"It is mine!" said [hero]. "No, it is mine! I saw it first!" said [friend].'),
        cast.one("They both pulled, and neither would let go.", "They shouted so loudly that the birds flew away."),
    ]
    second = [
        cast.say("[helper] heard them and came closer. \"{Why are you fighting|What is all this noise}?\" [hhe] asked."),
        cast.say("{They told [hhim] everything|Both of them talked at once}. [hhe] {listened|smiled}. "
                 "\"{You could take turns,|Why not take turns?}\" [hhe] said."),
    ]
    third = [
        cast.say("[hero] thought about it. \"You can have the [noun] {today|first},\" [he] said, \"and I will have it {tomorrow|next}.\""),
        cast.one("[friend] was surprised, and then [fhe] smiled.", '"That is fair," said [friend].'),
        cast.one("And so they shared the [thing], and it was twice as much fun.", "After that they never fought about the [noun] again."),
    ]
    return [first, second, third], [
        (f"What did {cast.hero.name} and {cast.friend.name} find?", f"They found {cast.slots['a_thing']}."),
        ("Where did they find it?", f"They found it {cast.slots['spot']}."),
    ]


def treasure(cast: Cast) -> Told:
    """A map with three landmarks leads to something."""
    marks = cast.random.sample(
        "the crooked tree|the stone bridge|the old mill|the three rocks|the dark cave|the waterfall|"
        "the empty well|the red barn|the tall tower|the wooden gate".split("|"), 3,
    )  # fmt: skip
    inside = cast.random.choice(
        ("a box full of old coins", "a book with golden letters", "[a_thing]", "a jar of sweets", "a letter from a pirate", "a tiny music box")
    )
    first = [
        cast.say("[day], [hero] found an old map [spot]."),
        cast.say(f'It said: "Go to {marks[0]}, then to {marks[1]}, then to {marks[2]}, and dig."'),
        cast.say("[hero] ran to [friend]. \"{Come with me|Let us find the treasure}!\" [he] said."),
    ]
    second = [
        cast.say(f"First they came to {marks[0]}. {{It was just as the map said|A crow watched them from above|They rested for a moment}}."),
        cast.say(f"Then they {{walked on to|went to}} {marks[1]}. {{It was getting late|The wind was cold there|[friend] was tired, but [fhe] did not complain}}."),
        cast.say(f"At last they {{reached|stood in front of}} {marks[2]}. \"Here!\" {{cried|said}} [hero], and they began to dig."),
    ]
    third = [
        cast.say(f"Deep in the ground they found {inside}!"),
        cast.one("They shared it, of course.", "\"Half for you and half for me,\" said [hero].", "They took it home and showed it to [hero]'s [elder]."),
        *cast.maybe(0.5, "But the best part had been the way there.", "And [hero] kept the map for ever."),
    ]
    return [first, second, third], [
        ("What was the first place on the map?", f"The first place was {marks[0]}."),
        ("Where did they dig?", f"They dug at {marks[2]}."),
        ("What did they find in the ground?", cast.say(f"They found {inside}.")),
    ]


def trading(cast: Cast) -> Told:
    """A chain of swaps from something small to something wanted."""
    goods = cast.random.sample([n for n in THINGS if n != cast.slots["noun"]], 2)
    chain = [*goods, cast.slots["noun"]]
    first = [
        cast.say(f"[hero] {{had|owned}} nothing but {article(chain[0])}, but what [he] really wanted was {article(chain[2])}."),
        cast.say('"{I will see what I can do|Maybe someone will swap}," [he] said, and [day], [he] {set out|went off}.'),
    ]
    second = [
        cast.say(f"First [he] met [friend], who {{needed|was looking for}} {article(chain[0])}. \"I will give you my {chain[1]} for it,\" said [friend]."),
        cast.say(f"So [hero] gave [fhim] the {chain[0]} and got the {chain[1]}."),
        cast.say(f"Then [he] met [helper]. \"{{What a fine|What a beautiful}} {chain[1]}!\" [hhe] said. \"Would you take this {chain[2]} for it?\""),
    ]
    third = [
        cast.say(f"[hero] {{could not believe [his] luck|was [happy]}}. [he] gave away the {chain[1]} and {{ran|skipped}} home with the {chain[2]}."),
        cast.say(f'"Everyone got what they needed," [he] told [his] [elder]. "{{That is the best kind of trade|And so did I}}."'),
    ]
    name = cast.hero.name
    return [first, second, third], [
        (f"What did {name} have first?", f"{name} had {article(chain[0])}."),
        (f"What did {name} get from {cast.friend.name}?", f"{name} got {article(chain[1])}."),
        (f"What did {name} want?", f"{name} wanted {article(chain[2])}."),
    ]


def lost_baby(cast: Cast) -> Told:
    """A lost young animal is brought home."""
    kind = cast.random.choice(ANIMALS)
    name = cast.random.choice([p for p in PETS if p not in (cast.hero.name, cast.friend.name, cast.other.name)])
    first = [
        cast.say(f"[day], [hero] heard someone crying [spot]."),
        cast.say(f"It was a {{tiny|very small}} {kind}. \"I am {name},\" it said. \"I {{have lost|cannot find}} my mother.\""),
        cast.say(f'"{{Do not be afraid|Do not cry}}, {name}," said [hero]. "I will take you home."'),
    ]
    second = [
        cast.say(f"They {{asked|went to}} [helper]. \"{{A mother {kind}|I saw a {kind}}} {{was|is}} [spot2],\" [hhe] said."
                 .replace("{A mother " + kind + "|I saw a " + kind + "} {was|is}", f"There is a {kind}")
                 .replace("a elephant", "an elephant").replace("a owl", "an owl").replace("a otter", "an otter")),
        cast.say(f"The way was long, so [hero] carried {name} on [his] back and sang {{a song|to it}}."),
        cast.say(f"When they came near, {name} {{began to jump|lifted its head}}. \"{{Mother|Mama}}!\" it {{cried|called}}."),
    ]
    third = [
        cast.say(f"The mother {{hugged|kissed}} her little one. \"Thank you for bringing {name} back to me,\" she said to [hero]."),
        cast.say("{She gave [him] [a_food]|They all ate [food] together}, and [hero] {walked|went} home under the stars."),
    ]
    return [first, second, third], [
        ("Who was lost?", f"A little {kind} named {name} was lost."),
        ("Where was the mother?", cast.say("The mother was [spot2].")),
    ]


def surprise(cast: Cast) -> Told:
    """Everyone seems to have forgotten a birthday."""
    n, plural = cast.counted(3, 9)
    first = [
        cast.say("It was [hero]'s birthday, but nobody said a word about it."),
        cast.say("[friend] {just walked past|said only \"Good morning\"}. [his] [elder] was {busy|not at home}."),
        cast.one('"They have all forgotten," thought [hero], and [he] felt [sad].', "[hero] went for a walk alone and kicked a small stone."),
    ]
    second = [
        cast.say("In the evening [he] came home. The house was dark and {silent|quiet}."),
        cast.say("[he] opened the door, and suddenly {all the lights went on|there was light everywhere}."),
        cast.say("\"Surprise!\" shouted [friend] and [other] and {all the others|everyone else}. \"Happy birthday, [hero]!\""),
    ]
    third = [
        cast.say(f"There was {{a big cake|music}}, there were {NUMBERS[n]} {plural}, and [friend] gave [him] [a_thing]."),
        cast.one('"We did not forget," said [friend]. "We were getting everything ready."', "[hero] laughed and cried at the same time."),
    ]
    return [first, second, third], [
        (f"What did {cast.friend.name} give {cast.hero.name}?", f"{cast.friend.name} gave {cast.hero.name} {cast.slots['a_thing']}."),
        (f"How many {plural} were there?", f"There were {NUMBERS[n]} {plural}."),
    ]


def counting(cast: Cast) -> Told:
    """Small sums inside a story."""
    singular = cast.random.choice(list(COUNT_FOODS))
    plural = COUNT_FOODS[singular]
    start, more = cast.random.randint(2, 8), cast.random.randint(1, 7)
    total = start + more
    give = cast.random.randint(1, total - 1)
    rest = total - give
    many = lambda k: f"one {singular}" if k == 1 else f"{NUMBERS[k]} {plural}"  # noqa: E731
    first = [
        cast.say(f"[day], [hero] had {many(start)} in a basket."),
        cast.say(f"Then [friend] came and gave [him] {NUMBERS[more]} more. Now [he] had {many(total)}."),
    ]
    second = [
        cast.say(f"On the road [he] met [helper], who looked {{tired|sad|hungry}}. \"{{Here|Please}}, take {many(give)},\" said [hero]."),
        cast.say(f"So [hero] had {many(rest)} left, {{and that was enough|but [he] did not mind|and [he] was content}}."),
    ]
    third = [
        cast.say("\"You have a good heart,\" said [the_helper]. {[he] walked home whistling|The sun was shining, and it was a fine day|And [hero] smiled all the way home}."),
    ]
    name = cast.hero.name
    return [first, second, third], [
        (f"How many {plural} did {name} have at first?", f"{name} had {many(start)} at first."),
        (f"How many {plural} did {name} have in the end?", f"{name} had {many(rest)} in the end."),
    ]


PLOTS: tuple[Callable[[Cast], Told], ...] = (
    lost_and_found, lost_and_found, saving_up, new_friend, stuck, honesty, building, contest, fear,
    baking, garden, taking_turns, treasure, trading, lost_baby, surprise, counting,
)  # fmt: skip
