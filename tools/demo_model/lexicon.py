"""Words of the corpus, and the split that keeps some of them for the held-out evaluation."""

from __future__ import annotations

import zlib
from random import Random

GIRLS = (
    "Mia Lily Anna Emma Ella Rosa Nora Zoe Ava Ruby Clara Lucy Maya Ivy Hana Sofia Leila Amara "
    "Freya Tilda Greta Nina Alice Daisy Olive Hazel Ines Yuki Priya Lena Molly Sara Tara Vera "
    "Wren Edith Flora Iris June Kira Luna Mabel Naomi Opal Pearl Rita Stella Thea Uma Willa "
    "Bella Carla Dora Esme Fern Gwen Holly Jade Kate Lola Sarah Laura Julia Marie Sophie Elena "
    "Martha Judith Helen Diana Monica Nadia Olga Paula Rachel Sonia Teresa Ursula Valerie Wendy "
    "Yvonne Zelda Agnes Beatrice Cecilia Dorothy Elsie Frances Gloria Harriet Isabel Jessica Karen "
    "Linda Maria Nancy Patricia Rebecca Susan Tina Violet Winnie Abigail Charlotte Emily Grace"
).split()
BOYS = (
    "Tom Ben Max Leo Sam Jack Finn Omar Noah Eli Hugo Oscar Theo Luca Felix Jonah Ravi Kenji "
    "Milo Otto Paul Peter Simon Victor Walter Adam Bruno Carl Daniel Emil Frank George Henry "
    "Ivan Jamal Karl Liam Marco Nils Owen Pablo Quinn Remy Stefan Tariq Umar Vince Will Yusuf "
    "Zack Anton Boris Cyrus Diego Enzo Fritz Gavin Hector Igor Joel James John Robert Michael "
    "William David Richard Joseph Thomas Charles Matthew Anthony Mark Steven Andrew Kevin Brian "
    "Edward Ronald Timothy Jason Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan Stephen Larry "
    "Justin Scott Brandon Benjamin Samuel Gregory Patrick Alexander Dennis Jerry Tyler Aaron Jose "
    "Nathan Douglas Zachary Kyle Ethan Jeremy Keith Christian Roger Terry Sean Austin Arthur"
).split()
PETS = (
    "Pip Dot Biscuit Clover Pepper Moss Button Nutmeg Pebble Thistle Bramble Snowy Ginger Patch "
    "Hopper Whiskers Acorn Maple Tumble Rusty Sunny Dusty Twig Bubbles Marble Fern Cinnamon Olly "
    "Fudge Juniper"
).split()
ANIMALS = (
    "fox rabbit bear mouse squirrel hedgehog owl duck frog badger otter turtle kitten puppy lamb "
    "beaver mole goat pony deer penguin raccoon sparrow crow beetle snail pig goose donkey elephant"
).split()
MORE_HEROES = (
    "dragon robot wizard witch princess prince knight king queen giant fairy mermaid unicorn dinosaur "
    "parrot panda monkey lion tiger wolf cow sheep chicken cat dog horse fish whale dolphin seal "
    "butterfly bee ant spider snake crocodile zebra giraffe camel koala kangaroo swan eagle pigeon "
    "bat hamster rat ghost pirate sailor farmer painter star cloud train tree snowman doll clown"
).split()
COLOURS = "red blue green yellow orange purple white black brown silver golden pink grey".split()
THINGS = (
    "ball kite hat key drum boat lantern scarf book map bell spoon basket blanket whistle button "
    "coin ring shell box mirror umbrella bucket doll train puzzle flute brush cup necklace feather "
    "marble balloon backpack watch pencil teapot wagon ribbon mitten crown compass candle pillow"
).split()
FOODS = (
    "apple pear plum cherry carrot bun pie cookie muffin pancake berry tomato pumpkin nut peach "
    "turnip cucumber sandwich cheese honey soup bread cake jam porridge"
).split()
COUNT_FOODS = {
    "apple": "apples", "pear": "pears", "plum": "plums", "cherry": "cherries",
    "carrot": "carrots", "bun": "buns", "cookie": "cookies", "muffin": "muffins",
    "pancake": "pancakes", "berry": "berries", "tomato": "tomatoes", "nut": "nuts",
    "peach": "peaches", "sandwich": "sandwiches", "marble": "marbles", "book": "books",
    "pencil": "pencils", "shell": "shells", "stone": "stones", "coin": "coins", "egg": "eggs",
    "flower": "flowers", "button": "buttons", "balloon": "balloons", "leaf": "leaves",
}  # fmt: skip
TRAITS = (
    "kind brave curious gentle clever shy cheerful patient quiet playful careful stubborn honest "
    "friendly thoughtful lively dreamy sensible bold polite"
).split()
SPOTS = (
    "under the old bridge|behind the barn|in the tall grass|on top of the hill|next to the well|"
    "under the kitchen table|inside a hollow log|by the pond|at the edge of the forest|"
    "between two big rocks|in the garden shed|under the apple tree|near the windmill|"
    "on the bank of the river|behind the garden wall|at the bottom of the stairs|"
    "in a bush of wild roses|beside the train tracks|in front of the bakery|on the sandy beach|"
    "under a pile of leaves|at the foot of the tower|in the corner of the attic|by the village gate|"
    "on the library steps|under the bed|behind the sofa|at the bus stop"
).split("|")
SETTINGS = (
    "in a small village by the sea|in a little house at the edge of the woods|on a quiet farm|"
    "in a big noisy city|in a green valley|near a wide river|in a town with crooked streets|"
    "on a small island|high up in the mountains|beside a deep blue lake|in a cottage with a red door|"
    "at the end of a long lane|in a warm burrow under an oak tree|next to an old mill|"
    "in a forest full of birds|in a street where everyone knew each other"
).split("|")
CITIES = (
    "Paris London Berlin Madrid Rome Vienna Oslo Lisbon Dublin Prague Warsaw Athens Cairo Nairobi "
    "Lagos Tokyo Seoul Delhi Mumbai Bangkok Jakarta Sydney Melbourne Toronto Montreal Chicago "
    "Boston Denver Seattle Austin Lima Bogota Santiago Quito Havana Helsinki Stockholm Copenhagen "
    "Brussels Amsterdam Zurich Geneva Milan Naples Porto Seville Hamburg Munich Lyon Nice Krakow "
    "Budapest Sofia Belgrade Istanbul Ankara Tehran Baghdad Dubai Doha Karachi Lahore Dhaka Hanoi "
    "Manila Shanghai Beijing Osaka Kyoto Perth Brisbane Auckland Wellington Cape Town"
).replace("Cape Town", "Durban").split()
SURNAMES = (
    "Smith Jones Brown Garcia Miller Davis Lopez Wilson Moore Taylor Clark Lewis Young Walker Hall "
    "Allen King Wright Scott Green Baker Adams Nelson Hill Campbell Mitchell Roberts Carter Evans "
    "Turner Parker Collins Edwards Stewart Morris Murphy Cook Rogers Reed Bailey Cooper Kelly "
    "Howard Ward Cox Diaz Wood Watson Brooks Bennett Gray Hughes Price Myers Long Foster Sanders"
).split()
SYLLABLES = (
    "ba be bi bo bu da de di do du ka ke ki ko ku la le li lo lu ma me mi mo mu na ne ni no nu ra "
    "re ri ro ru sa se si so su ta te ti to tu va ve vi vo vu za ze zi zo zu ja jo fa fe fi fo pa "
    "pe pi po pu ga ge go gu ha he hi ho wa we xa xi ya yo bra dri klo tra sto pla gri vel dor nim "
    "tal mek sor bin ral fen quo zan lor"
).split()
VOWELS, CONSONANTS = "aaaeeeeiiiooouuy", "bbccddffgghjkkllmmnnnppqrrrsssttttvwxz"
HELD_OUT_SHARE = 8


def held_out(word: str) -> bool:
    """Whether a word belongs to the evaluation only (about one in eight, by its checksum)."""
    return zlib.crc32(word.encode()) % HELD_OUT_SHARE == 0


class Pools:
    """Names and values of one side of the split.

    Args:
        evaluation: True takes only the held-out words, False only the others.
    """

    def __init__(self, evaluation: bool) -> None:
        self.evaluation = evaluation

        def side(words: list[str]) -> list[str]:
            return [w for w in words if held_out(w) == evaluation]

        self.girls, self.boys = side(GIRLS), side(BOYS)
        self.cities, self.surnames = side(CITIES), side(SURNAMES)

    def invented(self, random: Random, low: int = 2, high: int = 4) -> str:
        """Makes a word of random syllables or letters on this side of the split.

        Free letters teach copying of any piece of the vocabulary, not of known syllables only.
        """
        while True:
            if random.random() < 0.4:
                word = "".join(
                    random.choice(VOWELS if random.random() < 0.42 else CONSONANTS)
                    for _ in range(random.randint(low + 1, 2 * high))
                )
            else:
                word = "".join(random.choice(SYLLABLES) for _ in range(random.randint(low, high)))
            if held_out(word) == self.evaluation:
                return word

    def first_name(self, random: Random) -> str:
        """A person's first name, sometimes invented."""
        if random.random() < 0.3:
            return self.invented(random, 2, 3).capitalize()
        return random.choice(random.choice((self.girls, self.boys)))

    def full_name(self, random: Random) -> str:
        """First name and surname, either possibly invented."""
        last = (
            self.invented(random, 2, 3).capitalize()
            if random.random() < 0.4
            else random.choice(self.surnames)
        )
        return f"{self.first_name(random)} {last}"

    def city(self, random: Random) -> str:
        """A town, sometimes invented."""
        if random.random() < 0.4:
            return self.invented(random, 2, 4).capitalize()
        return random.choice(self.cities)

    def code(self, random: Random) -> str:
        """An identifier such as ``KX-4821``."""
        letters = "".join(random.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(random.randint(1, 3)))
        return f"{letters}{random.choice(('-', '', '_'))}{random.randint(10, 99999)}"


def sum_held_out(a: int, b: int) -> bool:
    """Whether the pair (a, b) of an addition or subtraction is kept for the evaluation."""
    return zlib.crc32(f"{a},{b}".encode()) % 10 == 0
