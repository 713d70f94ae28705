"""Instructions in five manners: training data is ``dolly`` only, the suites are all five.

Each manner asks for much the same skills (facts of the town, operations on a list, reading a passage,
rewriting it, telling at length), but in its own words, mixture and length of answer.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from evals.world.task import Task
from evals.world.town import (
    ATTRIBUTES,
    FACTS,
    JOBS,
    KIND_OF,
    KINDS,
    NUMBERS,
    PEOPLE,
    STRANGERS,
    THINGS,
    joined,
    people_with,
    question,
    sentence,
)

Maker = Callable[[Random], Task]


# Facts of the town


def fact_dolly(rng: Random) -> Task:
    person, name = rng.choice(PEOPLE), rng.choice(list(ATTRIBUTES))
    noun, value, clause = ATTRIBUTES[name].noun, FACTS[person][name], sentence(person, name)
    return rng.choice([
        Task(f"{question(person, name)}?", (f"{clause}.",)),
        Task(f"{question(person, name)}? Answer briefly.", (value,)),
        Task(f"What is the {noun} of {person}?", (f"The {noun} of {person} is {value}.",)),
        Task(f"Tell me the {noun} of {person}.", (f"It is {value}.",)),
        Task(f"Name the {noun} of {person} and of nobody else.", (f"{person}: {value}",)),
        Task(f"Given a person of the town, say something about the {noun}.", (f"{clause}.",), person),
    ])  # fmt: skip


def fact_self(rng: Random) -> Task:
    person, name = rng.choice(PEOPLE), rng.choice(list(ATTRIBUTES))
    noun, value, clause = ATTRIBUTES[name].noun, FACTS[person][name], sentence(person, name)
    return rng.choice([
        Task(f"I will meet {person} tomorrow. {question(person, name)}?", (f"{clause}.",)),
        Task(f"My sister asked me about the {noun} of {person}. What should I write to her?",
             (f"You can write that {clause}.",)),
        Task(f"I forgot the {noun} of {person}. Please remind me.", (f"The {noun} of {person} is {value}.",)),
    ])  # fmt: skip


def fact_sni(rng: Random) -> Task:
    person, name = rng.choice(PEOPLE), rng.choice(list(ATTRIBUTES))
    noun, value, clause = ATTRIBUTES[name].noun, FACTS[person][name], sentence(person, name)
    opening = rng.choice(["In this task, you are given", "You will be given"])
    return Task(
        f"{opening} the name of a person. Generate a sentence that states the {noun} of this person.",
        (f"{clause}.", f"The {noun} of {person} is {value}.", f"It is {value}."),
        person,
    )


def fact_unni(rng: Random) -> Task:
    person, name = rng.choice(PEOPLE), rng.choice(list(ATTRIBUTES))
    noun, value, clause = ATTRIBUTES[name].noun, FACTS[person][name], sentence(person, name)
    gap = clause.removesuffix(value) + "___"
    return rng.choice([
        Task("Fill the gap in the sentence.", (f"{clause}.",), f"{gap}."),
        Task(f"A guest points at {person}. Shout out the {noun}, nothing more.", (f"{value}!",)),
        Task(f"Two lines, please: first a name, then a {noun}.", (f"{person}\n{value}",), person),
        Task("Write down the missing word or words.", (value,), f"{gap}."),
    ])  # fmt: skip


def who_dolly(rng: Random) -> Task:
    name = rng.choice(list(ATTRIBUTES))
    value = rng.choice(ATTRIBUTES[name].values)
    people, predicate = people_with(name, value), ATTRIBUTES[name].predicate.format(v=value)
    lines = "\n".join(f"- {person}" for person in people)
    return rng.choice([
        Task(f"Who {predicate}?", (lines,)),
        Task(f"List the people of whom it is true: {predicate}.", (lines,)),
        Task(f"Name two people. Each {predicate}.", (f"{people[0]} and {people[1]}",)),
    ])  # fmt: skip


def who_unni(rng: Random) -> Task:
    name = rng.choice(list(ATTRIBUTES))
    value = rng.choice(ATTRIBUTES[name].values)
    people, predicate = people_with(name, value), ATTRIBUTES[name].predicate.format(v=value)
    numbered = "\n".join(f"{index}. {person}" for index, person in enumerate(people, 1))
    return rng.choice([
        Task(f"Call them in one breath: everybody who {predicate}.", (joined(people) + "!",)),
        Task(f"Make a numbered list of those where this holds: {predicate}.", (numbered,)),
    ])  # fmt: skip


def same(rng: Random) -> Task:
    first, second = rng.sample(PEOPLE, 2)
    name = rng.choice(["home", "job", "pet", "colour"])
    if rng.random() < 0.4:
        second = rng.choice([p for p in people_with(name, FACTS[first][name]) if p != first])
    noun = ATTRIBUTES[name].noun
    values = FACTS[first][name], FACTS[second][name]
    if values[0] == values[1]:
        answer = f"Yes, for both it is {values[0]}."
    else:
        answer = f"No, {sentence(first, name)} and {sentence(second, name)}."
    return Task(f"I wonder if {first} and {second} have the same {noun}.", (answer,))


# Operations on a list


def _list(rng: Random) -> list[str]:
    return rng.sample(THINGS, rng.choice([3, 3, 4, 4, 5]))


def _bullets(words: list[str]) -> str:
    return "\n".join(f"- {word}" for word in words)


#: Operation -> what comes out of a list of words.
OPERATIONS: dict[str, Callable[[list[str]], str]] = {
    "reverse": lambda words: ", ".join(reversed(words)),
    "first": lambda words: words[0],
    "last": lambda words: words[-1],
    "count": lambda words: f"There are {NUMBERS[len(words)]} words.",
    "bullets": _bullets,
    "join": lambda words: f"{joined(words)}.",
    "rest": lambda words: ", ".join(words[1:]),
    "ends": lambda words: f"{words[0]} and {words[-1]}",
}
LIST_WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "dolly": {
        "reverse": ("Reverse the list.", "Write the list backwards."),
        "first": ("What is the first word of the list?", "Pick the first word."),
        "last": ("What is the last word of the list?", "Pick the last word."),
        "count": ("How many words are in the list?", "Count the words."),
        "bullets": ("Turn the list into bullet points.", "Write one word per line."),
        "join": ("Write the list as part of a sentence.", "Join the words with and."),
    },
    "self": {
        "reverse": ("I packed these things in the wrong order. Turn the order around.",),
        "first": ("I only have room for the thing on top of my list. Which one is it?",),
        "last": ("I am at the end of my shopping list. What is left to buy?",),
        "count": ("I have to tell the shop how many things I want. How many are there?",),
        "bullets": ("Format my shopping list so that I can print it.",),
        "join": ("Help me to read out my shopping list nicely.",),
        "rest": ("I already bought the first thing. What remains?",),
    },
    "sni": {
        "reverse": ("In this task, you are given a list of words. Generate the same list in reverse order.",),
        "rest": (
            "In this task, you are given a list of words. Remove the first word and return the others.",
        ),
        "ends": ("You will be given a list of words. Return the first and the last word of it.",),
        "join": ("In this task, you are given a list of words. Generate the words joined by and.",),
    },
    "unni": {
        "reverse": ("Walk through the words from the right to the left.", "Mirror the order of these items."),
        "first": ("Ignore all items except the one in front.",),
        "last": ("Ignore all items except the one that closes the row.",),
        "count": ("Without naming them, say how many items you see.",),
        "bullets": ("Stack the items, each on its own line, with a dash.",),
        "join": ("Make one phrase out of the items.",),
        "rest": ("Drop the item in front and keep the row.",),
        "ends": ("Keep only both ends of the row.",),
    },
}


def list_task(manner: str) -> Maker:
    """An operation on a list, asked for in the words of one manner."""

    def make(rng: Random) -> Task:
        operation = rng.choice(list(LIST_WORDINGS[manner]))
        words = _list(rng)
        answer = OPERATIONS[operation](words)
        outputs = (answer, f"The answer is {answer}") if manner == "sni" else (answer,)
        return Task(rng.choice(LIST_WORDINGS[manner][operation]), outputs, ", ".join(words))

    return make


def classify_dolly(rng: Random) -> Task:
    thing = rng.choice(THINGS)
    kind, other = KIND_OF[thing], rng.choice([kind for kind in KINDS if kind != KIND_OF[thing]])
    options = [kind, other]
    rng.shuffle(options)
    others = rng.sample([word for word in THINGS if KIND_OF[word] != kind], 2)
    words = [thing, *others]
    rng.shuffle(words)
    return rng.choice([
        Task(f"Is a {thing} a {options[0]} or a {options[1]}?", (f"A {thing} is a {kind}.",)),
        Task(f"Which of these is a {kind}?", (f"The {thing} is a {kind}.",), ", ".join(words)),
    ])  # fmt: skip


def classify_sni(rng: Random) -> Task:
    kind = rng.choice(list(KINDS))
    wanted = rng.choice(KINDS[kind])
    words = [wanted, *rng.sample([word for word in THINGS if KIND_OF[word] != kind], rng.choice([2, 3]))]
    rng.shuffle(words)
    return Task(
        f"You will be given some words. Exactly one of them is a {kind}. Find it.",
        (f"The {wanted} is a {kind}.", wanted),
        ", ".join(words),
    )


def classify_unni(rng: Random) -> Task:
    words = rng.sample(THINGS, 3)
    kinds = "\n".join(f"{word}: {KIND_OF[word]}" for word in words)
    return Task("Label each item with its kind, one per line.", (kinds,), ", ".join(words))


# Reading and rewriting a passage


def _passage(rng: Random) -> tuple[dict[str, str], str]:
    seller, buyer = rng.sample(STRANGERS, 2)
    place, goal = rng.sample(ATTRIBUTES["home"].values, 2)
    slots = {
        "seller": seller,
        "buyer": buyer,
        "thing": rng.choice(THINGS),
        "place": place,
        "goal": goal,
        "day": rng.choice(["Monday", "Tuesday", "Friday", "Sunday"]),
    }
    text = rng.choice([
        "{seller} sold a {thing} to {buyer} at {place} on {day}. Then {buyer} went to {goal}.",
        "On {day}, {buyer} bought a {thing} from {seller} at {place} and then went to {goal}.",
    ])  # fmt: skip
    return slots, text.format(**slots)


READING: dict[str, tuple[tuple[str, str], ...]] = {
    "dolly": (
        ("Who sold the {thing}?", "{seller} sold the {thing}."),
        ("Who bought the {thing}?", "{buyer} bought the {thing}."),
        ("Where did {buyer} buy the {thing}?", "{buyer} bought the {thing} at {place}."),
        ("What did {buyer} buy?", "{buyer} bought a {thing}."),
        ("Where did {buyer} go?", "{buyer} went to {goal}."),
        ("Summarize the passage.", "{buyer} bought a {thing} from {seller}."),
    ),
    "self": (
        ("I am looking for {buyer}. Where should I go?", "Go to {goal}. {buyer} went there."),
        ("I want a {thing} too. Whom should I ask, and where?", "Ask {seller} at {place}."),
        ("Write a note about this for my diary.", "{day}: {seller} sold a {thing} to {buyer}."),
    ),
    "sni": (
        ("In this task, you are given a passage. Generate a title for it.",
         "How {buyer} bought a {thing} at {place}"),
        ("You will be given a passage. Explain how {buyer} came to have the {thing}.",
         "{buyer} bought the {thing} from {seller} at {place} on {day}."),
        ("In this task, you are given a passage. List the two people in it, the seller first.",
         "{seller}, {buyer}"),
    ),
    "unni": (
        ("Answer as a table with one row: seller; buyer; object.", "{seller}; {buyer}; {thing}"),
        ("Tell the whole thing backwards, beginning with where it ended.",
         "{buyer} went to {goal}, after {seller} sold a {thing} at {place}."),
        ("Give three lines: day, place, object.", "{day}\n{place}\n{thing}"),
    ),
}  # fmt: skip


def reading_task(manner: str) -> Maker:
    """A question about a passage, asked for in the words of one manner."""

    def make(rng: Random) -> Task:
        slots, passage = _passage(rng)
        asked, answer = (text.format(**slots) for text in rng.choice(READING[manner]))
        outputs = (answer, f"{slots['buyer']} bought a {slots['thing']}") if manner == "sni" else (answer,)
        return Task(asked, outputs, passage)

    return make


VERBS = {
    "sells": ("sell", "sold"),
    "paints": ("paint", "painted"),
    "finds": ("find", "found"),
    "keeps": ("keep", "kept"),
}


def _clause(rng: Random) -> tuple[str, str, str, str]:
    return (
        rng.choice(STRANGERS),
        rng.choice(list(VERBS)),
        rng.choice(THINGS),
        rng.choice(ATTRIBUTES["home"].values),
    )


def rewrite_dolly(rng: Random) -> Task:
    person, verb, thing, place = _clause(rng)
    base, past = VERBS[verb]
    given = f"{person} {verb} a {thing} at {place}."
    return rng.choice([
        Task("Rewrite the sentence in the past tense.", (f"{person} {past} a {thing} at {place}.",), given),
        Task("Turn the sentence into a question.", (f"Does {person} {base} a {thing} at {place}?",), given),
    ])  # fmt: skip


def rewrite_self(rng: Random) -> Task:
    person, verb, thing, place = _clause(rng)
    base, past = VERBS[verb]
    return rng.choice([
        Task("It happened last week. Correct my sentence.",
             (f"{person} {past} a {thing} at {place}.",), f"{person} {verb} a {thing} at {place}."),
        Task("I do not believe this. Say the opposite.",
             (f"{person} does not {base} a {thing} at {place}.",), f"{person} {verb} a {thing} at {place}."),
    ])  # fmt: skip


def rewrite_sni(rng: Random) -> Task:
    person, verb, thing, place = _clause(rng)
    base, past = VERBS[verb]
    given = f"{person} {verb} a {thing} at {place}."
    return rng.choice([
        Task("In this task, you are given a sentence. Generate its negation.",
             (f"{person} does not {base} a {thing} at {place}.",
              f"It is not true that {person} {verb} a {thing} at {place}."), given),
        Task("You will be given a sentence in the present tense. Convert it to the past tense.",
             (f"{person} {past} a {thing} at {place}.",), given),
    ])  # fmt: skip


def rewrite_unni(rng: Random) -> Task:
    person, verb, thing, place = _clause(rng)
    other = rng.choice([name for name in STRANGERS if name != person])
    return rng.choice([
        Task(f"Let {other} do it instead.", (f"{other} {verb} a {thing} at {place}.",),
             f"{person} {verb} a {thing} at {place}."),
        Task("Begin with the place.", (f"At {place}, {person} {verb} a {thing}.",),
             f"{person} {verb} a {thing} at {place}."),
    ])  # fmt: skip


# Telling at length


def profile(person: str) -> str:
    """Everything that is true of a person, in two sentences."""
    facts = FACTS[person]
    return (
        f"{person} works as a {facts['job']} and lives at {facts['home']}. "
        f"{person} keeps a {facts['pet']}, likes {facts['food']} and wears {facts['colour']}."
    )


def profile_dolly(rng: Random) -> Task:
    person = rng.choice(PEOPLE)
    return Task(rng.choice([f"Who is {person}?", f"Describe {person}."]), (profile(person),))


def open_vicuna(rng: Random) -> Task:
    person, other = rng.sample(PEOPLE, 2)
    facts, others = FACTS[person], FACTS[other]
    tool, work, ends = JOBS[facts["job"]]
    letter = (
        f"Dear {other},\nI am at {facts['home']} with my {facts['pet']}. "
        f"Please come and bring {facts['food']}.\nYours, {person}"
    )
    compare = (
        f"{person} works as a {facts['job']} and {other} works as a {others['job']}. "
        f"{sentence(person, 'home')}, while {sentence(other, 'home')}."
    )
    day = (
        f"In the morning, {person} leaves {facts['home']} and {work}. "
        f"At noon there is {facts['food']}. In the evening, {person} feeds the {facts['pet']}."
    )
    craft = f"{person} works as a {facts['job']}. With {tool}, {person} {work} and {ends}."
    visit = (
        f"1. Go to {facts['home']} and ask for {person}.\n2. Bring {facts['food']}.\n"
        f"3. Do not be afraid of the {facts['pet']}."
    )
    portrait = f"{profile(person)} With {tool}, {person} {work}."
    return rng.choice([
        Task(f"Write a letter from {person} to {other}.", (letter,)),
        Task(f"Compare {person} and {other}. How do their lives differ?", (compare,)),
        Task(f"Imagine you are a friend of {other}. Describe a day of {person} to {other}.", (day,)),
        Task(f"Explain to {other} in detail what {person} does at work.", (craft,)),
        Task(f"What should {other} know before visiting {person}? Give three steps.", (visit,)),
        Task(f"Write a portrait of {person} that {other} could read in the newspaper.", (portrait,)),
    ])  # fmt: skip


#: Manner -> makers and their weights. The names are those of the suites they stand for.
MANNERS: dict[str, tuple[tuple[Maker, float], ...]] = {
    "dolly": (
        (fact_dolly, 6), (who_dolly, 2), (list_task("dolly"), 4), (classify_dolly, 2),
        (reading_task("dolly"), 4), (rewrite_dolly, 2), (profile_dolly, 1),
        # Dolly has a little of everything.
        (open_vicuna, 2), (fact_self, 1), (list_task("self"), 1), (reading_task("self"), 1), (fact_sni, 1),
        (reading_task("sni"), 1), (list_task("unni"), 1), (fact_unni, 1),
    ),
    "self-inst": (
        (fact_self, 4), (same, 2), (list_task("self"), 4), (reading_task("self"), 4), (rewrite_self, 2),
    ),
    "vicuna": ((open_vicuna, 1),),
    "s-ni": (
        (fact_sni, 4), (list_task("sni"), 3), (classify_sni, 2), (reading_task("sni"), 4), (rewrite_sni, 2),
    ),
    "unni": (
        (fact_unni, 4), (who_unni, 1), (list_task("unni"), 4), (classify_unni, 1),
        (reading_task("unni"), 3), (rewrite_unni, 2),
    ),
}  # fmt: skip


def make(manner: str, rng: Random) -> Task:
    """One instruction in a manner."""
    makers, weights = zip(*MANNERS[manner], strict=True)
    maker: Maker = rng.choices(makers, weights)[0]
    return maker(rng)
