"""A closed table of facts and the questions one can ask about it."""

from __future__ import annotations

from random import Random

from grammar import article, fill

COUNTRIES = {
    "France": ("Paris", "Europe", "French"), "Germany": ("Berlin", "Europe", "German"),
    "Spain": ("Madrid", "Europe", "Spanish"), "Italy": ("Rome", "Europe", "Italian"),
    "Portugal": ("Lisbon", "Europe", "Portuguese"), "Austria": ("Vienna", "Europe", "German"),
    "Norway": ("Oslo", "Europe", "Norwegian"), "Sweden": ("Stockholm", "Europe", "Swedish"),
    "Finland": ("Helsinki", "Europe", "Finnish"), "Denmark": ("Copenhagen", "Europe", "Danish"),
    "Ireland": ("Dublin", "Europe", "English"), "Poland": ("Warsaw", "Europe", "Polish"),
    "Greece": ("Athens", "Europe", "Greek"), "Hungary": ("Budapest", "Europe", "Hungarian"),
    "the Netherlands": ("Amsterdam", "Europe", "Dutch"), "Iceland": ("Reykjavik", "Europe", "Icelandic"),
    "Bulgaria": ("Sofia", "Europe", "Bulgarian"), "Romania": ("Bucharest", "Europe", "Romanian"),
    "Ukraine": ("Kyiv", "Europe", "Ukrainian"), "the United Kingdom": ("London", "Europe", "English"),
    "Egypt": ("Cairo", "Africa", "Arabic"), "Kenya": ("Nairobi", "Africa", "Swahili"),
    "Morocco": ("Rabat", "Africa", "Arabic"), "Ghana": ("Accra", "Africa", "English"),
    "Senegal": ("Dakar", "Africa", "French"), "Ethiopia": ("Addis Ababa", "Africa", "Amharic"),
    "Japan": ("Tokyo", "Asia", "Japanese"), "China": ("Beijing", "Asia", "Chinese"),
    "South Korea": ("Seoul", "Asia", "Korean"), "Thailand": ("Bangkok", "Asia", "Thai"),
    "Vietnam": ("Hanoi", "Asia", "Vietnamese"), "India": ("New Delhi", "Asia", "Hindi"),
    "Indonesia": ("Jakarta", "Asia", "Indonesian"), "Iran": ("Tehran", "Asia", "Persian"),
    "Turkey": ("Ankara", "Asia", "Turkish"), "Mongolia": ("Ulaanbaatar", "Asia", "Mongolian"),
    "Canada": ("Ottawa", "North America", "English"), "Mexico": ("Mexico City", "North America", "Spanish"),
    "Cuba": ("Havana", "North America", "Spanish"), "Brazil": ("Brasilia", "South America", "Portuguese"),
    "Argentina": ("Buenos Aires", "South America", "Spanish"), "Chile": ("Santiago", "South America", "Spanish"),
    "Peru": ("Lima", "South America", "Spanish"), "Colombia": ("Bogota", "South America", "Spanish"),
    "Ecuador": ("Quito", "South America", "Spanish"), "Australia": ("Canberra", "Oceania", "English"),
    "New Zealand": ("Wellington", "Oceania", "English"),
}  # fmt: skip
ANIMALS = {
    "dog": ("puppy", "bark", "mammal", "four", "a kennel", "meat"),
    "cat": ("kitten", "meow", "mammal", "four", "a house", "fish"),
    "cow": ("calf", "moo", "mammal", "four", "a barn", "grass"),
    "horse": ("foal", "neigh", "mammal", "four", "a stable", "hay"),
    "sheep": ("lamb", "bleat", "mammal", "four", "a field", "grass"),
    "pig": ("piglet", "oink", "mammal", "four", "a sty", "vegetables"),
    "duck": ("duckling", "quack", "bird", "two", "a pond", "water plants"),
    "hen": ("chick", "cluck", "bird", "two", "a coop", "grain"),
    "goose": ("gosling", "honk", "bird", "two", "a pond", "grass"),
    "lion": ("cub", "roar", "mammal", "four", "the savanna", "meat"),
    "bear": ("cub", "growl", "mammal", "four", "a den", "berries and fish"),
    "wolf": ("pup", "howl", "mammal", "four", "the forest", "meat"),
    "frog": ("tadpole", "croak", "amphibian", "four", "a pond", "insects"),
    "owl": ("owlet", "hoot", "bird", "two", "a hollow tree", "mice"),
    "bee": ("larva", "buzz", "insect", "six", "a hive", "nectar"),
    "snake": ("snakelet", "hiss", "reptile", "no", "a burrow", "mice"),
    "elephant": ("calf", "trumpet", "mammal", "four", "the savanna", "leaves and grass"),
    "goat": ("kid", "bleat", "mammal", "four", "a farm", "grass"),
    "spider": ("spiderling", None, "arachnid", "eight", "a web", "insects"),
    "rabbit": ("kit", None, "mammal", "four", "a burrow", "carrots and grass"),
    "kangaroo": ("joey", None, "mammal", "two", "the bush", "grass"),
    "penguin": ("chick", None, "bird", "two", "the ice", "fish"),
    "swan": ("cygnet", None, "bird", "two", "a lake", "water plants"),
    "ant": ("larva", None, "insect", "six", "an anthill", "seeds"),
    "butterfly": ("caterpillar", None, "insect", "six", "a meadow", "nectar"),
    "whale": ("calf", "sing", "mammal", "no", "the sea", "plankton"),
    "eagle": ("eaglet", "screech", "bird", "two", "a nest", "fish and small animals"),
    "deer": ("fawn", None, "mammal", "four", "the forest", "leaves"),
}  # fmt: skip
OPPOSITES = dict(
    pair.split("-")
    for pair in (
        "hot-cold big-small tall-short fast-slow up-down left-right day-night black-white happy-sad "
        "open-closed old-young full-empty hard-soft wet-dry early-late light-dark loud-quiet "
        "rich-poor strong-weak clean-dirty near-far high-low thick-thin long-short easy-difficult "
        "begin-end buy-sell push-pull give-take win-lose laugh-cry remember-forget inside-outside "
        "above-below first-last true-false sweet-sour heavy-light brave-afraid sharp-blunt "
        "summer-winter north-south east-west friend-enemy arrive-leave love-hate smooth-rough"
    ).split()
)
PLURALS = dict(
    pair.split("-")
    for pair in (
        "mouse-mice child-children foot-feet tooth-teeth goose-geese man-men woman-women leaf-leaves "
        "wolf-wolves knife-knives sheep-sheep fish-fish box-boxes city-cities baby-babies key-keys "
        "dish-dishes story-stories potato-potatoes half-halves dog-dogs house-houses tree-trees "
        "bus-buses berry-berries toy-toys church-churches book-books fox-foxes shelf-shelves"
    ).split()
)
PAST = dict(
    pair.split("-")
    for pair in (
        "go-went run-ran see-saw eat-ate drink-drank sing-sang swim-swam write-wrote give-gave "
        "take-took find-found lose-lost think-thought buy-bought bring-brought teach-taught "
        "catch-caught sleep-slept keep-kept feel-felt know-knew grow-grew fly-flew draw-drew "
        "break-broke speak-spoke choose-chose walk-walked play-played jump-jumped help-helped "
        "build-built send-sent tell-told sell-sold make-made come-came begin-began fall-fell"
    ).split()
)
JOBS = {
    "baker": "bakes bread and cakes", "farmer": "grows food and keeps animals",
    "teacher": "teaches children at school", "doctor": "helps people who are ill",
    "carpenter": "makes things out of wood", "fisherman": "catches fish",
    "pilot": "flies planes", "tailor": "makes and mends clothes",
    "gardener": "looks after plants and gardens", "librarian": "looks after books",
    "shepherd": "looks after sheep", "miller": "grinds grain into flour",
    "painter": "paints pictures and walls", "cook": "prepares meals",
    "firefighter": "puts out fires", "dentist": "looks after teeth",
    "postman": "brings letters and parcels", "clockmaker": "makes and repairs clocks",
    "potter": "makes pots out of clay", "astronaut": "travels into space",
}  # fmt: skip
MIXES = {
    ("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "blue"): "purple",
    ("black", "white"): "grey", ("red", "white"): "pink",
}  # fmt: skip
SHAPES = {
    "triangle": "three", "square": "four", "rectangle": "four", "pentagon": "five",
    "hexagon": "six", "heptagon": "seven", "octagon": "eight",
}  # fmt: skip
MONTHS = (
    "January February March April May June July August September October November December"
).split()
WEEK = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
MISC = (
    ("{How many days are|How many days are there} in a week?", "There are seven days in a week."),
    ("How many months are there in a year?", "There are twelve months in a year."),
    ("How many {hours are there in a day|hours does a day have}?", "There are 24 hours in a day."),
    ("How many minutes are {there in|in} an hour?", "There are 60 minutes in an hour."),
    ("How many seconds are there in a minute?", "There are 60 seconds in a minute."),
    ("How many centimetres are in a metre?", "There are 100 centimetres in a metre."),
    ("How many grams are in a kilogram?", "There are 1000 grams in a kilogram."),
    ("At what temperature does water freeze?", "Water freezes at 0 degrees Celsius."),
    ("At what temperature does water boil?", "Water boils at 100 degrees Celsius."),
    ("{What is|Which is} the largest planet{| in our solar system}?", "Jupiter is the largest planet in our solar system."),
    ("{What is|Which is} the largest ocean{| on Earth}?", "The Pacific Ocean is the largest ocean on Earth."),
    ("{What is|Which is} the highest mountain{| in the world| on Earth}?", "Mount Everest is the highest mountain on Earth."),
    ("What colour is the sky{| on a clear day}?", "On a clear day, the sky is blue."),
    ("Why is the sky blue?", "The air scatters blue light from the sun more than red light, so the sky looks blue."),
    ("What do bees make?", "Bees make honey."),
    ("What do plants need to grow?", "Plants need light, water, air and food from the soil."),
    ("Where does the sun rise?", "The sun rises in the east."),
    ("Where does the sun set?", "The sun sets in the west."),
    ("What is ice?", "Ice is frozen water."),
    ("What is steam?", "Steam is water that has turned into gas."),
    ("How many legs does a table usually have?", "A table usually has four legs."),
    ("How many fingers are on one hand?", "There are five fingers on one hand."),
    ("What do we breathe?", "We breathe air. Our bodies need the oxygen in it."),
    ("What is the opposite direction of north?", "The opposite of north is south."),
    ("Which season comes after winter?", "Spring comes after winter."),
    ("Which season comes after spring?", "Summer comes after spring."),
    ("Which season comes after summer?", "Autumn comes after summer."),
    ("Which season comes after autumn?", "Winter comes after autumn."),
    ("Name the four seasons.", "The four seasons are spring, summer, autumn and winter."),
    ("Name three colours.", "Red, blue and green."),
    ("Name three fruits.", "Apple, pear and plum."),
    ("Name three animals.", "Fox, rabbit and owl."),
    ("Name the days of the week.", "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
    ("What is a mixture of experts?", "A mixture of experts is a model made of many small networks. For each token a router picks a few of them, so most of the model rests."),
    ("What is an SSD?", "An SSD is a drive that stores data on chips. It has no moving parts and reads very fast."),
    ("What is RAM?", "RAM is the fast memory that a computer uses while it works."),
    ("What is a router in a language model?", "The router looks at each token and chooses the experts that will work on it."),
    ("What is a token?", "A token is a small piece of text, such as a word or a part of a word."),
    ("What is quantisation?", "Quantisation stores the weights of a model with fewer bits, so that the model gets smaller."),
    ("What is flash_moe?", "flash_moe is an engine that runs mixture-of-experts models larger than memory. It reads the experts from the SSD when they are needed."),
    ("What is the moon?", "The moon is a ball of rock that travels around the Earth."),
    ("What is the sun?", "The sun is a star. It gives us light and warmth."),
    ("What is a poem?", "A poem is a short text with rhythm, and often with rhymes."),
    ("What is a library?", "A library is a place where people can read and borrow books."),
)  # fmt: skip
STARS = "{Please tell me|Tell me|Can you tell me}"


def _country(random: Random) -> tuple[str, str, str]:
    country = random.choice(list(COUNTRIES))
    city, continent, language = COUNTRIES[country]
    upper = country[0].upper() + country[1:]
    return random.choice(
        (
            ("{What is|What's|Tell me|Name} the capital of [x]?", f"The capital of {country} is {city}.", country),
            ("Which city is the capital of [x]?", f"{city} is the capital of {country}.", country),
            ("{Which|What} country has the capital [x]?", f"{city} is the capital of {country}.", city),
            ("{On which|In which} continent is [x]?", f"{upper} is in {continent}.", country),
            ("Where is [x]?", f"{upper} is in {continent}.", country),
            ("{What|Which} language {do people speak|is spoken} in [x]?", f"People in {country} speak {language}.", country),
            ("Tell me about [x].", f"{upper} is a country in {continent}. Its capital is {city}, and many people there speak {language}.", country),
        )
    )  # fmt: skip


def _animal(random: Random) -> tuple[str, str, str]:
    name = random.choice(list(ANIMALS))
    baby, sound, kind, legs, home, food = ANIMALS[name]
    options = [
        ("What {is a baby [x] called|do you call a baby [x]}?", f"A baby {name} is called {article(baby)}."),
        ("{How many legs does [a] have|How many legs has [a]}?", f"{article(name).capitalize()} has {legs} legs."),
        ("Where does [a] live?", f"{article(name).capitalize()} lives in {home}." if home != "the ice" else "A penguin lives on the ice."),
        ("What does [a] eat?", f"{article(name).capitalize()} eats {food}."),
        ("What {kind of animal|sort of animal} is [a]?", f"{article(name).capitalize()} is {article(kind)}."),
        ("Tell me about [a].", f"{article(name).capitalize()} is {article(kind)} with {legs} legs. It eats {food}, and its young is called {article(baby)}."),
    ]  # fmt: skip
    if sound:
        options.append(("What sound does [a] make?", f"{article(name).capitalize()} can {sound}."))
        options.append(("Which animal can [s]?", f"{article(name).capitalize()} can {sound}."))
    question, answer = random.choice(options)
    if sound in ("bleat",) and "Which animal" in question:
        return _animal(random)
    return question.replace("[s]", sound or ""), answer, name


def _words(random: Random) -> tuple[str, str, str]:
    kind = random.randrange(3)
    if kind == 0:
        a, b = random.choice(list(OPPOSITES.items()))
        if random.random() < 0.4 and b not in ("short", "light"):
            a, b = b, a
        return "{What is|What's} the opposite of {[x]|\"[x]\"|the word [x]}?", f"The opposite of {a} is {b}.", a
    if kind == 1:
        a, b = random.choice(list(PLURALS.items()))
        return "{What is|What's} the plural of {[x]|\"[x]\"}?", f"The plural of {a} is {b}.", a
    a, b = random.choice(list(PAST.items()))
    return "{What is|What's} the past tense of {[x]|\"[x]\"}?", f"The past tense of {a} is {b}.", a


def _order(random: Random) -> tuple[str, str, str]:
    kind = random.randrange(6)
    if kind == 0:
        i = random.randrange(12)
        return "{Which|What} month comes after [x]?", f"{MONTHS[(i + 1) % 12]} comes after {MONTHS[i]}.", MONTHS[i]
    if kind == 1:
        i = random.randrange(7)
        return "{Which|What} day comes after [x]?", f"{WEEK[(i + 1) % 7]} comes after {WEEK[i]}.", WEEK[i]
    if kind == 2:
        i = random.randrange(7)
        return "{Which|What} day comes before [x]?", f"{WEEK[i - 1]} comes before {WEEK[i]}.", WEEK[i]
    if kind == 3:
        i = random.randrange(12)
        return "{Which|What} is the [x] month of the year?", f"{MONTHS[i]} is the {ORDINALS[i]} month of the year.", ORDINALS[i]
    if kind == 4:
        i = random.randrange(8)
        return "Which is the [x] planet from the sun?", f"{PLANETS[i]} is the {ORDINALS[i]} planet from the sun.", ORDINALS[i]
    i = random.randrange(12)
    return "{Which|What} month comes before [x]?", f"{MONTHS[i - 1]} comes before {MONTHS[i]}.", MONTHS[i]


def question(random: Random) -> tuple[str, str]:
    """One question about the table and its answer."""
    pick = random.random()
    if pick < 0.3:
        template, answer, x = _country(random)
    elif pick < 0.5:
        template, answer, x = _animal(random)
    elif pick < 0.65:
        template, answer, x = _words(random)
    elif pick < 0.75:
        template, answer, x = _order(random)
    elif pick < 0.8:
        job, does = random.choice(list(JOBS.items()))
        template, answer, x = "What does [a] do?", f"{article(job).capitalize()} {does}.", job
    elif pick < 0.83:
        (a, b), mixed = random.choice(list(MIXES.items()))
        if random.random() < 0.5:
            a, b = b, a
        template = "{What colour do you get if you mix|What do you get when you mix} [x]?"
        answer, x = f"If you mix {a} and {b}, you get {mixed}.", f"{a} and {b}"
    elif pick < 0.86:
        shape, sides = random.choice(list(SHAPES.items()))
        template, answer, x = "How many sides does [a] have?", f"{article(shape).capitalize()} has {sides} sides.", shape
    else:
        template, answer = random.choice(MISC)
        x = ""
    text = fill(random, template, {"x": x, "a": article(x) if x else ""})
    if text.startswith(("Tell me the capital", "Name the capital")):
        text = text.replace("?", ".")
    elif random.random() < 0.06:
        text = text[0].lower() + text[1:]
    return text, answer
