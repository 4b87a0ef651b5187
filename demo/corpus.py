"""The corpus: questions spelled out from patterns, roughened, and strung into conversations.

Everything random takes the caller's `random.Random`, so one seed gives one corpus.
"""

import re
import string
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, Literal

import yaml

Role = Literal["system", "user", "assistant"]

INNERMOST_CHOICE: Final = re.compile(r"\(([^()]*)\)")
SLOT: Final = re.compile(r"<([a-z]+)>")

UNKNOWN_RATIO: Final = 0.2
"""Share of questions cria must admit not to know."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a conversation."""

    role: Role
    text: str
    learned: bool = True
    """False for assistant text that only stands in the context, such as another model's answer."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One answer and the patterns of the questions it belongs to."""

    name: str
    patterns: tuple[str, ...]
    answer: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """A question and the words its temperature-0 answer must contain."""

    question: str
    contains: tuple[str, ...]
    unseen: bool = False
    known_miss: bool = False
    """The present model file gets it wrong; kept to see when a new one does not."""
    system: str = ""
    earlier: tuple[str, ...] = ()

    def missing_from(self, answer: str) -> list[str]:
        """The expected words `answer` lacks; empty means it passes."""
        return [words for words in self.contains if words.lower() not in answer.lower()]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Everything `corpus.yaml` says, plus the wordings that must stay unseen."""

    topics: tuple[Topic, ...]
    unknown: Topic
    slots: dict[str, list[str]]
    system_prompts: list[str]
    beginnings: list[list[str]]
    spellings: dict[str, str]
    """Proper spelling of a word by its lower case."""
    openers: list[str]
    closers: list[str]
    unseen: frozenset[str] = field(default_factory=frozenset)

    @property
    def answers(self) -> list[str]:
        return [topic.answer for topic in (*self.topics, self.unknown)]


def load_corpus(path: Path, *, unseen: frozenset[str]) -> Corpus:
    """The corpus file; `unseen` holds canonical questions never to be sampled."""
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Corpus(
        topics=tuple(
            Topic(
                name=topic["id"],
                patterns=tuple(topic["questions"]),
                answer=topic["answer"],
                weight=topic.get("weight", 1.0),
            )
            for topic in document["topics"]
        ),
        unknown=Topic(
            name="unknown", patterns=tuple(document["unknown"]["questions"]), answer=document["unknown"]["answer"]
        ),
        slots=document["slots"],
        system_prompts=document["system_prompts"],
        beginnings=document["beginnings"],
        spellings={spelling.lower(): spelling for spelling in document["spellings"]},
        openers=document["openers"],
        closers=document["closers"],
        unseen=unseen,
    )


def load_expectations(path: Path) -> list[Expectation]:
    """The checks of `expected.yaml`, in file order."""
    entries: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Expectation(
            question=entry["question"],
            contains=tuple(entry["contains"]),
            unseen=entry.get("unseen", False),
            known_miss=entry.get("known_miss", False),
            system=entry.get("system", ""),
            earlier=tuple(entry.get("earlier", ())),
        )
        for entry in entries
    ]


def canonical(question: str) -> str:
    """The question without case, punctuation and spacing, to compare wordings."""
    return "".join(character for character in question.lower() if character.isalnum())


def sample_conversation(corpus: Corpus, rng: Random) -> list[Message]:
    """An optional system prompt and one to a few questions with their answers."""
    messages: list[Message] = []
    if rng.random() < 0.35:
        messages.append(Message(role="system", text=_system_prompt(corpus, rng)))
    while True:
        if rng.random() < 0.03:
            # Clients replay what other models said; cria must not depend on its own style in the context.
            messages.append(Message(role="user", text=_soup(corpus, rng, words_max=40)))
            messages.append(Message(role="assistant", text=_soup(corpus, rng, words_max=80), learned=False))
        topic = _pick_topic(corpus, rng)
        messages.append(Message(role="user", text=sample_question(corpus, topic, rng)))
        messages.append(Message(role="assistant", text=topic.answer))
        if rng.random() < 0.45:
            return messages


def sample_prose(corpus: Corpus, rng: Random) -> tuple[str, str]:
    """A heading, perhaps empty, and the text under it.

    There is no chat markup, so that `/completion` on a bare prompt reads well too.
    """
    topic = rng.choice(corpus.topics)
    question = sample_question(corpus, topic, rng)
    if rng.random() < 0.3:
        return f"Question: {question}\nAnswer:", f" {topic.answer}"
    return rng.choice(("", f"{question}\n")), topic.answer


def sample_question(corpus: Corpus, topic: Topic, rng: Random) -> str:
    """A wording of one of the topic's questions that is not reserved for the final check."""
    while True:
        question = _roughen(_spell_out(corpus, rng.choice(topic.patterns), rng), corpus, rng)
        if canonical(question) not in corpus.unseen:
            return question


def _pick_topic(corpus: Corpus, rng: Random) -> Topic:
    if rng.random() < UNKNOWN_RATIO:
        return corpus.unknown
    return rng.choices(corpus.topics, weights=[topic.weight for topic in corpus.topics])[0]


def _spell_out(corpus: Corpus, pattern: str, rng: Random) -> str:
    """The pattern with every choice taken and every slot filled."""
    while INNERMOST_CHOICE.search(pattern):
        pattern = INNERMOST_CHOICE.sub(lambda match: rng.choice(match[1].split("|")), pattern)
    return " ".join(SLOT.sub(lambda match: _fill_slot(corpus, match[1], rng), pattern).split())


def _fill_slot(corpus: Corpus, slot: str, rng: Random) -> str:
    if slot == "number":
        return str(rng.randrange(10 ** rng.randint(1, 4)))
    if slot == "year":
        return str(rng.randint(1200, 2040))
    if slot == "gibberish":
        return _made_up_word(rng)
    if slot == "soup":
        return _soup(corpus, rng, words_max=30)
    # A third of all names is made up: cria must recognise the question around a word it has never read.
    if rng.random() < 0.33 and slot not in ("verb", "glue"):
        return _made_up_word(rng)
    return rng.choice(corpus.slots[slot])


def _made_up_word(rng: Random) -> str:
    """A pronounceable word, or for one in four plain noise."""
    if rng.random() < 0.25:
        return "".join(rng.choices(string.ascii_letters + string.digits + "-_.", k=rng.randint(2, 10)))
    word = "".join(_syllable(rng) for _ in range(rng.randint(1, 4)))
    return word.capitalize() if rng.random() < 0.3 else word


def _syllable(rng: Random) -> str:
    return rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(("", "n", "r", "l", "s", "t"))


def _soup(corpus: Corpus, rng: Random, *, words_max: int) -> str:
    """Meaningless text of three to `words_max` words, in sentences."""
    words = []
    for _ in range(rng.randint(3, words_max)):
        kind = rng.random()
        word = rng.choice(corpus.slots["glue" if kind < 0.5 else "word" if kind < 0.8 else "verb"])
        word = _made_up_word(rng) if rng.random() < 0.1 else word
        words.append(word + rng.choices(("", ",", ".", "\n", ":"), weights=(88, 5, 5, 1, 1))[0])
    return " ".join(words)


def _system_prompt(corpus: Corpus, rng: Random) -> str:
    """One of the written prompts, a random text, or both; one in thirty is as long as an agent's."""
    if rng.random() < 0.03:
        return _soup(corpus, rng, words_max=400)
    kind = rng.random()
    written = rng.choice(corpus.system_prompts)
    if kind < 0.6:
        return written
    return f"{written} {_soup(corpus, rng, words_max=50)}" if kind < 0.8 else _soup(corpus, rng, words_max=50)


def _roughen(question: str, corpus: Corpus, rng: Random) -> str:
    """The question as people type it: polite or not, with or without case, punctuation and typing errors."""
    if rng.random() < 0.35:
        question = _begin_otherwise(question, corpus, rng)
    if rng.random() < 0.15:
        question = rng.choice(corpus.openers) + question
    if rng.random() < 0.08:
        question += rng.choice(corpus.closers)
    if rng.random() < 0.5:
        question = " ".join(corpus.spellings.get(word, word) for word in question.split(" "))
    if rng.random() < 0.1:
        question = _mistype(question, rng)
    case = rng.random()
    if case < 0.45:
        question = question[:1].upper() + question[1:]
    elif case < 0.55:
        question = question.lower()
    elif case < 0.63:
        question = question.upper()
    elif case < 0.67:
        question = question.title()
    question += rng.choices(("", "?", ".", "!", "??", "...", " ?"), weights=(40, 42, 8, 5, 2, 1, 2))[0]
    return question + rng.choices(("", " ", "\n"), weights=(96, 2, 2))[0]


def _begin_otherwise(question: str, corpus: Corpus, rng: Random) -> str:
    """The question with its beginning replaced by one that means the same, if it has such a beginning."""
    for beginnings in corpus.beginnings:
        for beginning in beginnings:
            if question.startswith(f"{beginning} "):
                return rng.choice(beginnings) + question.removeprefix(beginning)
    return question


def _mistype(question: str, rng: Random) -> str:
    """The question with one letter dropped, doubled or swapped with the next."""
    at = rng.randrange(max(1, len(question) - 1))
    before, letter, after = question[:at], question[at : at + 1], question[at + 1 :]
    return rng.choice((before + after, before + letter * 2 + after, before + after[:1] + letter + after[1:]))
