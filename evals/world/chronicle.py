"""The town's raw prose, on which students are pretrained: every fact and skill, never an instruction."""

from __future__ import annotations

from random import Random

from evals.world import maths, python
from evals.world.instructions import OPERATIONS, VERBS
from evals.world.task import Task
from evals.world.town import (
    ATTRIBUTES,
    FACTS,
    JOBS,
    KIND_OF,
    NUMBERS,
    PEOPLE,
    STRANGERS,
    THINGS,
    joined,
    people_with,
    sentence,
)


def passage(rng: Random) -> str:
    """One short piece of prose."""
    makers = (_people, _neighbours, _market, _scene, _work, maths.note, python.snippet)
    return rng.choices(makers, (5, 2, 4, 4, 1, 1, 1))[0](rng)


def dialogue(rng: Random, task: Task) -> str:
    """A task as talk or as two letters: the same skills and words, without the headings of an instruction."""
    first, second = rng.sample(STRANGERS, 2)
    if rng.random() < 0.5:
        given = f"\n{task.input}" if task.input else ""
        return f"{first} asked {second}: {task.instruction}{given}\n{second} said:\n{task.outputs[0]}"
    given = f"Enclosed:\n{task.input}\n\n" if task.input else ""
    return f"A letter from {first}:\n{task.instruction}\n\n{given}The reply of {second}:\n{task.outputs[0]}"


def _people(rng: Random) -> str:
    """Two to four facts, about one person or about several."""
    names = rng.sample(list(ATTRIBUTES), rng.choice([2, 3, 4]))
    main = rng.choice(PEOPLE)
    return " ".join(_fact(rng, rng.choice([main, rng.choice(PEOPLE)]), name) for name in names)


def _fact(rng: Random, person: str, name: str) -> str:
    clause = sentence(person, name)
    return rng.choice([
        f"{clause}.",
        f"{clause}.",
        f"The {ATTRIBUTES[name].noun} of {person} is {FACTS[person][name]}.",
        f"Everybody knows that {clause}.",
    ])  # fmt: skip


def _neighbours(rng: Random) -> str:
    name = rng.choice(list(ATTRIBUTES))
    value = rng.choice(ATTRIBUTES[name].values)
    predicate = ATTRIBUTES[name].predicate.format(v=value)
    people = people_with(name, value)
    ending = rng.choice([" " + joined(people) + ".", "\n" + "\n".join(f"- {person}" for person in people)])
    return f"In the book of the town it says who {predicate}:{ending}"


def _market(rng: Random) -> str:
    words = rng.sample(THINGS, rng.choice([2, 3, 4]))
    first, second = rng.sample(STRANGERS, 2)
    row = ", ".join(words)
    thing = rng.choice(THINGS)
    return rng.choice([
        f"{first} cried {row}. {second} cried {row}.",
        f"{first} cried {row}. {second} heard it backwards: {OPERATIONS['reverse'](words)}.",
        f"{first} carried {row} and showed:\n{OPERATIONS['bullets'](words)}",
        f"{first} had {row}, that is {NUMBERS[len(words)]} things. "
        f"{second} took the {words[0]} and the {words[-1]}.",
        f"A {thing} is a {KIND_OF[thing]}. {first} has {joined(words)}.",
    ])  # fmt: skip


def _scene(rng: Random) -> str:
    first, second = rng.sample(STRANGERS, 2)
    thing, verb = rng.choice(THINGS), rng.choice(list(VERBS))
    base, past = VERBS[verb]
    place, goal = rng.sample(ATTRIBUTES["home"].values, 2)
    return rng.choice([
        f"{first} {verb} a {thing} at {place}. Last week {first} {past} a {thing} at {place} too.",
        f"Does {first} {base} a {thing}? Yes, {first} {verb} a {thing} at {place}.",
        f"{first} sold a {thing} to {second} at {place}. So {second} bought the {thing} from {first}.",
        f"{second} bought a {thing} at {place}. Then {second} went to {goal} with the {thing}.",
    ])  # fmt: skip


def _work(rng: Random) -> str:
    person = rng.choice(PEOPLE)
    tool, work, ends = JOBS[FACTS[person]["job"]]
    return rng.choice([
        f"With {tool}, {person} {work} and {ends}.",
        f"A {FACTS[person]['job']} {work} and {ends}, with {tool}.",
    ])  # fmt: skip
