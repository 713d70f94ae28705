"""The people of the town and what is true of them; the words that everything else is written with."""

from __future__ import annotations

import random
from dataclasses import dataclass

PEOPLE = (
    "Zoë", "Bjørn", "Łucja", "André", "Søren", "Jürgen", "Núria", "Håkon",
    "Šárka", "François", "Dvořák", "Mila", "Tobias", "Greta", "Paolo", "Nadia",
    "Viktor", "Selma", "Rufus", "Petra", "Hugo", "Ingrid", "Casper", "Olga",
)  # fmt: skip
#: People passing through: nothing is true of them but what a passage says.
STRANGERS = (
    "Ada", "Ben", "Clara", "Daniel", "Eva", "Frank", "Gwen", "Henry", "Iris", "Jonas", "Kira", "Louis",
)  # fmt: skip

KINDS = {
    "fruit": ("plum", "pear", "lemon", "cherry", "melon", "fig"),
    "tool": ("saw", "hammer", "rake", "drill", "ladder", "shovel"),
    "beast": ("goat", "cat", "dog", "hen", "duck", "horse"),
    "toy": ("kite", "doll", "drum", "puzzle", "ball", "rattle"),
    "garment": ("coat", "hat", "scarf", "glove", "boot", "shirt"),
}
THINGS = tuple(thing for things in KINDS.values() for thing in things)
KIND_OF = {thing: kind for kind, things in KINDS.items() for thing in things}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Attribute:
    """Something each person has; ``{p}`` stands for the person and ``{v}`` for the value."""

    noun: str
    question: str  #: without its question mark
    sentence: str  #: without its full stop
    values: tuple[str, ...]

    @property
    def predicate(self) -> str:
        """The sentence without its subject: ``lives at {v}``."""
        return self.sentence.removeprefix("{p} ")


ATTRIBUTES = {
    "home": Attribute("home", "Where does {p} live", "{p} lives at {v}", (
        "the old mill", "the harbour", "the castle", "the green farm", "the stone bridge", "the north gate",
    )),
    "job": Attribute("job", "What does {p} do for a living", "{p} works as a {v}", (
        "baker", "smith", "weaver", "sailor", "doctor", "painter", "potter", "gardener",
    )),
    "pet": Attribute("pet", "Which beast does {p} keep", "{p} keeps a {v}", KINDS["beast"]),
    "food": Attribute("favourite food", "What does {p} like to eat", "{p} likes {v}", (
        "plum cake", "onion soup", "rye bread", "blue cheese", "crème brûlée", "jalapeño stew",
    )),
    "colour": Attribute("colour", "Which colour does {p} wear", "{p} wears {v}", (
        "red", "blue", "green", "white", "black", "brown",
    )),
}  # fmt: skip

#: What each job is about: the tool, what is done with it, and where the work ends up.
JOBS = {
    "baker": ("a wooden shovel", "bakes bread before sunrise", "sells warm rolls to the neighbours"),
    "smith": ("a heavy hammer", "bends hot iron", "makes shoes for every horse in town"),
    "weaver": ("a long needle", "turns wool into cloth", "sews coats for the winter"),
    "sailor": ("a thick rope", "steers a boat to the islands", "brings back salt and spices"),
    "doctor": ("a small knife", "looks after the sick", "mixes herbs against the fever"),
    "painter": ("a soft brush", "paints doors and signs", "hangs a picture in every house"),
    "potter": ("a turning wheel", "shapes cups out of clay", "burns them in a round oven"),
    "gardener": ("a sharp rake", "plants trees along the road", "picks fruit in the autumn"),
}


def _facts() -> dict[str, dict[str, str]]:
    """Every value of an attribute goes to about equally many people."""
    rng = random.Random("the town")
    facts: dict[str, dict[str, str]] = {person: {} for person in PEOPLE}
    for name, attribute in ATTRIBUTES.items():
        order = list(PEOPLE)
        rng.shuffle(order)
        for index, person in enumerate(order):
            facts[person][name] = attribute.values[index % len(attribute.values)]
    return facts


FACTS = _facts()


def sentence(person: str, attribute: str) -> str:
    """A fact as a clause, without its full stop."""
    return ATTRIBUTES[attribute].sentence.format(p=person, v=FACTS[person][attribute])


def question(person: str, attribute: str) -> str:
    """The question for a fact, without its question mark."""
    return ATTRIBUTES[attribute].question.format(p=person)


def people_with(attribute: str, value: str) -> list[str]:
    """Everybody of whom it is true, in the town's own order."""
    return [person for person in PEOPLE if FACTS[person][attribute] == value]


def joined(words: list[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
