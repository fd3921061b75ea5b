"""Conversations to compare with other programs: several languages, tools, parallel calls, reasoning."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from tests.support.templated import WEATHER

TEXTS = (
    "How warm is it in Paris?", "今天天气怎么样？", "Ça va bien, merci.", "x = 3\n\ty = 4", "- a\n  - b", "Привет!",
    "🙂👍🏽", "２ café", '{"a": [1, 2]}', "a < b && c > d", "مرحبا بالعالم", "한국어 עברית", "It's 11:30.\n\nReally?",
    "don't I'LL 12345",
)  # fmt: skip
CITIES = ("Paris", "北京", "New York", "a\nb", 'with "quotes"')


def chats(
    count: int, seed: int, *, queries: int = 3, reasoning: bool = False, system: bool = True
) -> Iterator[Conversation]:
    """Yield ``count`` conversations of up to ``queries`` questions; with ``reasoning``, every answer has some.

    ``system``: some open with a system turn.
    """
    random = Random(seed)
    for _ in range(count):
        turns: list[Turn] = []
        tools = (WEATHER,) if random.random() < 0.6 else ()
        for _ in range(random.randint(1, queries)):
            turns.append(Turn("user", _text(random)))
            while tools and random.random() < 0.5:
                turns += _calls(random, reasoning)
            turns.append(Turn("assistant", _text(random), _text(random) if reasoning else None))
        opening = _text(random) if system and random.random() < 0.5 else None
        yield Conversation("", opening, tuple(turns), tools=tools)


def _text(random: Random) -> str:
    return " ".join(random.choices(TEXTS, k=random.randint(1, 3))).strip()


def _calls(random: Random, reasoning: bool) -> list[Turn]:
    count = random.randint(1, 2)
    calls = tuple(
        ToolCall("get_weather", {"city": random.choice(CITIES)} | ({"days": 2} if random.random() < 0.5 else {}))
        for _ in range(count)
    )
    said = _text(random) if random.random() < 0.5 else ""
    results = [Turn("tool", random.choice(('{"t": 11}', "rain", "晴，１１度")), name="get_weather") for _ in calls]
    return [Turn("assistant", said, _text(random) if reasoning else None, calls), *results]
