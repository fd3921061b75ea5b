"""What can be wrong with one conversation; :data:`RULES` names and explains every rule."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwen_job.chat.conversation import Conversation, Turn
from qwen_job.data.arrange import arrange
from qwen_job.data.formats import RecordError, parse_record
from qwen_job.data.order import CONTROL, is_invisible, order_problems
from qwen_job.data.privacy import find_personal_data, find_secrets
from qwen_job.data.rows import Malformed
from qwen_job.data.sizes import Sizes
from qwen_job.data.tool_rules import TOOL_RULES
from qwen_job.data.turns import split_thought
from qwen_job.limits import MAX_LENGTH

# rule -> (is it an error, what it means). A row with an error cannot be trained on.
RULES: dict[str, tuple[bool, str]] = {
    "malformed": (True, "not JSON, no known layout, or a field of the wrong type"),
    "unused_key": (True, "a key with content that training would lose"),
    "order": (True, "roles out of order, empty turns, or no answer to learn from"),
    "template": (True, "a conversation that the model's chat template refuses"),
    "encoding": (True, "half of a surrogate pair: text that cannot be written as UTF-8"),
    "special_token": (
        False,
        "text such as <|im_end|> inside a value (trained as plain characters), or a mark such as "
        "<think> (in an answer: learnt as the model's token for it)",
    ),
    "call_as_text": (False, "<tool_call> in the text of an answer: learnt as written, not in the template's form"),
    "thought_as_text": (False, "</think> within the text of an answer: learnt there, not as the end of reasoning"),
    "without_system": (False, "an empty system prompt: no system turn is trained, not even the default one"),
    "control_character": (False, "control, invisible or replacement characters"),
    "long_turn": (False, "a turn longer than --max-turn-tokens"),
    "long_sample": (False, "a conversation longer than --max-length"),
    "duplicate": (False, "the same conversation as an earlier row"),
    "secret": (False, "likely API keys, private keys, passwords"),
    "personal": (False, "likely e-mail addresses, phone, ID card and bank card numbers"),
    "unrelated": (False, "an answer that repeats its question or is in another language"),
    "truncated": (False, "an answer that seems to break off"),
    "no_answer": (False, "a last turn of reasoning without an answer or a call"),
    "nothing_learnt": (False, "no answer is trained, because the row switches all of them off"),
    **TOOL_RULES,
}

# Control tokens, and the marks that templates put around reasoning, calls and results.
_SPECIAL = re.compile(r"<\|[A-Za-z0-9_]{1,40}\|>|</?(?:think|tools|tool_call|tool_response)>")
_MARKS = frozenset(
    f"<{slash}{name}>" for name in ("think", "tools", "tool_call", "tool_response") for slash in ("", "/")
)
_CHINESE = re.compile("[\u4e00-\u9fff]+")
_LATIN = re.compile("[A-Za-z]+")
_OTHER_LANGUAGE = re.compile(
    r"英文|英语|翻译|中文|汉语|日语|法语|代码|程序|函数|公式|translat|chinese|english|mandarin|code|python|sql|regex",
    re.IGNORECASE,
)
_BREAKS_OFF = tuple(",，、;；(（[【{「『“‘")
_LONG_ANSWER = 400


class RowFinding(NamedTuple):
    """One finding: ``row`` counts from 1; ``message`` says what is wrong and how to fix it."""

    file: str
    row: int
    rule: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.field}: {self.message}"

    @property
    def is_error(self) -> bool:
        """Tell whether the row cannot be trained on."""
        return RULES[self.rule][0]


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens above which a turn or a sample is reported."""

    max_turn_tokens: int = 512
    max_length: int = MAX_LENGTH


def read(
    value: Any, layout: str, turn_order: str, ignored: frozenset[str], counts: Counter[str], thinking: str = "keep"
) -> tuple[Conversation | None, list[tuple[str, str, str]]]:
    """Parse one row; return it (None if that failed, or ``turn_order`` leaves it out) and its errors.

    Errors are (rule, field, message); what ``turn_order`` changed is added to ``counts``. ``thinking`` as in
    :func:`~qwen_job.data.formats.parse_record`.
    """
    if isinstance(value, Malformed):
        return None, [("malformed", "row", value.message)]
    try:
        conversation = arrange(parse_record(value, layout, ignored, thinking), turn_order, counts)
    except RecordError as error:
        return None, [(error.rule, error.field, error.message)]
    problems = order_problems(conversation, turn_order) if conversation else ()
    return conversation, [(problem.rule, problem.field, problem.message) for problem in problems]


def inspect(
    conversation: Conversation, own: Container[str] = (), as_written: bool = False
) -> Iterator[tuple[str, str, str]]:
    """Yield (rule, field, message) for everything found in the text of a readable conversation.

    ``own``: tokens that the user added to the tokenizer, which are intended in text. ``as_written``: reasoning was left
    in the texts of answers, so that the marks around it are intended as well.
    """
    if conversation.system == "":
        yield "without_system", "system", "is empty: no system turn is trained; remove it for data.system_prompt"
    for rule, message in _of_text(conversation.system or "", own):
        yield rule, "system", message
    before: Turn | None = None
    for number, turn in enumerate(conversation.turns, 1):
        learnt = turn.role == "assistant" and turn.learn is not False
        thought, text = split_thought(turn.text) if as_written and turn.role == "assistant" else (None, turn.text)
        for rule, message in (*_of_text(thought or "", own), *_of_text(text, own, learnt)):
            yield rule, f"turn {number} ({turn.role})", message
        if turn.reasoning or turn.calls:
            yield from _of_parts(turn, f"turn {number} ({turn.role})", own)
        if before and before.role == "user" and turn.role == "assistant" and not turn.calls:
            for rule, message in _of_answer(before.text, turn.text):
                yield rule, f"turn {number} (assistant)", message
        before = turn
    yield from _of_learning(conversation.turns)


def _of_parts(turn: Turn, field: str, own: Container[str]) -> Iterator[tuple[str, str, str]]:
    """Look into the reasoning and the calls of an answer."""
    for rule, message in _of_text(turn.reasoning or "", own):
        yield rule, f"{field}.reasoning", message
    for place, call in enumerate(turn.calls):
        found = dict(each for text in _strings(call.arguments) for each in _of_text(text, own))
        for rule, message in found.items():
            yield rule, f"{field}.calls[{place}].arguments", message


def _of_learning(turns: Sequence[Turn]) -> Iterator[tuple[str, str, str]]:
    answers = [turn for turn in turns if turn.role == "assistant"]
    if answers and all(turn.learn is False for turn in answers):
        message = "switches off the training of every answer; switch one on, or remove the conversation"
        yield "nothing_learnt", "turns", message
    if turns[-1].reasoning and not turns[-1].calls and is_invisible(turns[-1].text):
        message = "has reasoning, and neither an answer nor a call; complete it or remove the conversation"
        yield "no_answer", f"turn {len(turns)} (assistant)", message
    if _stays_in_thought(turns[-1]):
        message = "begins with <think> and never ends it, so that it is learnt as an answer; complete or remove it"
        yield "no_answer", f"turn {len(turns)} (assistant)", message


def _stays_in_thought(turn: Turn) -> bool:
    """Tell whether an answer was cut off while the model still thought."""
    return turn.role == "assistant" and turn.text.lstrip().startswith("<think>") and "</think>" not in turn.text


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in a value of JSON, keys of objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield str(key)
            yield from _strings(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _strings(part)


def lengths(conversation: Conversation, sizes: Sizes, limits: Limits) -> Iterator[tuple[str, str, str]]:
    """Yield (rule, field, message) for turns and samples that are too long."""
    if max(sizes.turns) > limits.max_turn_tokens:
        # From the end, because the first may be a system prompt.
        last = len(conversation.turns)
        for back, (turn, count) in enumerate(zip(reversed(conversation.turns), reversed(sizes.turns), strict=False)):
            if count > limits.max_turn_tokens:
                message = f"has {count} tokens, more than {limits.max_turn_tokens}; shorten or split it"
                yield "long_turn", f"turn {last - back} ({turn.role})", message
    longest = max(map(sum, sizes.samples), default=0)
    if longest > limits.max_length:
        message = f"has {longest} tokens, more than {limits.max_length}; see data.long_samples"
        yield "long_sample", "conversation", message


def _of_text(text: str, own: Container[str], learnt: bool = False) -> Iterator[tuple[str, str]]:
    """Look into one text; ``learnt``: it is that of an answer, in which marks are tokens."""
    if "<" in text:
        yield from _of_marks([each for each in _SPECIAL.findall(text) if each in _MARKS or each not in own], learnt)
    if control := CONTROL.search(text):
        count = len(CONTROL.findall(text))
        name = f"U+{ord(control[0]):04X}"
        yield "control_character", f"holds {count} invisible or control characters ({name}); 'data clean' removes them"
    for kind in dict.fromkeys(find_secrets(text)):
        yield "secret", f"seems to hold a secret ({kind}); remove it, and revoke it if it is real"
    for kind in find_personal_data(text):
        yield "personal", f"seems to hold {kind}; remove or replace it"


def _of_marks(found: list[str], learnt: bool) -> Iterator[tuple[str, str]]:
    if learnt and "<tool_call>" in found:
        yield "call_as_text", ("holds <tool_call> as text: the model learns to call in this form, which a server for "
                               "its template may not read; write tool_calls, and the tools of the row")  # fmt: skip
        found = [each for each in found if each not in ("<tool_call>", "</tool_call>")]
    if learnt and "</think>" in found:
        yield "thought_as_text", ("holds </think> within its text: it is learnt there, a thinking model's behind an "
                                  "empty thought; write reasoning_content, or <think> at the start")  # fmt: skip
        found = [each for each in found if each not in ("<think>", "</think>")]
    if found:
        becomes = ", which is learnt as the model's token for it" if learnt and found[0] in _MARKS else ""
        yield "special_token", f"holds {found[0]}{becomes}; remove it unless the text is about it"


def _of_answer(question: str, answer: str) -> Iterator[tuple[str, str]]:
    asked, answered = question.strip(), answer.strip()
    if len(asked) > 8 and answered == asked:
        yield "unrelated", "repeats its question word for word; check that it is the right answer"
    elif not _OTHER_LANGUAGE.search(question):
        one, other = _language(asked), _language(answered)
        if one and other and one != other:
            yield "unrelated", f"is {other} to a {one} question; check that it belongs to it"
    if answered.count("```") % 2:
        yield "truncated", "ends inside a code block; complete it or remove the conversation"
    elif answered.endswith(_BREAKS_OFF) or (len(answered) >= _LONG_ANSWER and _ends_in_a_word(answered)):
        yield "truncated", f"seems to break off at {answered[-12:]!r}; complete it or remove the conversation"


def _ends_in_a_word(answer: str) -> bool:
    """Tell whether prose ends in a long line without punctuation; lists, tables and code may end like that."""
    last = answer.rsplit("\n", 1)[-1].strip()
    return len(last) > 60 and last[-1].isalpha() and last[0] not in "-*|#>+`" and "```" not in answer


def _language(text: str) -> str:
    """Name the script of a text: Chinese or Latin-script, or an empty text if it is mixed or short."""
    chinese, latin = (sum(map(len, script.findall(text))) for script in (_CHINESE, _LATIN))
    if chinese >= 6 and chinese * 4 > latin:
        return "Chinese"
    return "Latin-script" if latin >= 20 and not chinese else ""
