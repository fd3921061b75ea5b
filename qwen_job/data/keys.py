"""What training does with a key of a row or turn: use it, ignore it (listed once), or refuse to lose its content.

``UNTRAINABLE`` is the one table of content that cannot be trained on, or not where it is; a new ability removes its
entry.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from qwen_job.text import MISSPELT, did_you_mean, visible

# JSON nested deeper than this is not a conversation; code that walks rows stays far below Python's recursion limit.
MAX_DEPTH = 100
_CONTAINERS = (dict, list, tuple)


class RecordError(ValueError):
    """One row cannot be read: the field, and what is wrong with it. The caller adds file and row.

    ``rule`` is the name in :data:`qwen_job.data.rules.RULES` under which ``data check`` counts it.
    """

    def __init__(self, field: str, message: str, rule: str = "malformed") -> None:
        self.field, self.message = visible(field, 200), visible(message)
        super().__init__(f"{self.field}: {self.message}")
        self.rule = rule


class Untrainable(NamedTuple):
    """A kind of content that cannot be trained on, or not where it is: its keys, its roles, and what to do."""

    keys: frozenset[str]
    roles: frozenset[str]
    advice: str


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


UNTRAINABLE: dict[str, Untrainable] = {
    "reasoning": Untrainable(
        _words(
            "reasoning_content reasoning reasoning_text thinking thinking_content thought thoughts think cot rationale"
        ),
        _words("reasoning thinking thought"),
        "holds reasoning where it is not read; name it reasoning_content in the assistant's turn that it belongs to, "
        "or write <think>...</think> before the answer",
    ),
    "tools": Untrainable(
        _words(
            "tool_calls tool_call tool_call_id tool_choice tool_response tool_responses tool_name "
            "function_call function_calls plugins apis"
        ),
        frozenset(),
        "belongs to tool calls, which are not read here; write tools beside the turns, tool_calls in the assistant's "
        "turns, and each result as a turn with the role tool",
    ),
    "answers": Untrainable(
        _words("answers"),
        frozenset(),
        "holds answers that are no turns, such as the calls in rows of xLAM's form; write messages: the query as the "
        "user's turn, the calls as tool_calls of the assistant's, and each tool's parameters as a JSON schema",
    ),
    "media": Untrainable(
        _words("image images image_url image_urls video videos audio audios speech files attachments objects bbox"),
        frozenset(),
        "holds media, and only text is trained; leave the conversation out",
    ),
    "switches": Untrainable(
        _words("weight loss train training trainable loss_weight loss_scale loss_mask mask masked learn"),
        frozenset(),
        "chooses what is learnt, and is read in turns only, as loss or weight with 1 or 0; to repeat or leave out "
        "rows, give their file a weight",
    ),
    "preferences": Untrainable(
        _words("chosen rejected rejected_response rejected_responses rejected_messages kto_tag preferred dispreferred"),
        frozenset(),
        "belongs to preference training, which is not offered; keep the answer to learn from, and remove the others",
    ),
}
_ADVICE = {key: kind.advice for kind in UNTRAINABLE.values() for key in kind.keys}
_ROLE_ADVICE = {role: kind.advice for kind in UNTRAINABLE.values() for role in kind.roles}
# Read in turns. For a row, a value that asks for what happens anyway is accepted: 1 or true.
SWITCHES = _words("weight loss train training trainable loss_weight loss_scale learn")

# Names of a row's origin, order and description. None of them is text to learn.
NEUTRAL = _words(
    "id _id uid uuid guid idx index key hash md5 sha1 sha256 row_id sample_id item_id data_id doc_id example_id "
    "conversation_id conv_id dialog_id dialogue_id message_id msg_id parent_id thread_id session_id user_id prompt_id "
    "question_id answer_id task_id source_id __index_level_0__ unnamed:_0 "
    "source sources src origin dataset dataset_name data_source subset split config url link license author authors "
    "annotator worker created created_at updated_at modified_at create_time update_time date time timestamp version "
    "type kind category categories task tasks task_type task_name topic topics domain subject field tag tags title "
    "lang language locale country difficulty level quality score scores rating ratings reward rewards votes upvotes "
    "model model_name model_id generator engine usage tokens num_tokens token_count length num_turns turn_count "
    "n_turns parallel_tool_calls redacted toxic toxicity moderation openai_moderation detoxify_moderation meta "
    "metadata meta_data extra_info info comment comments note notes remark remarks"
)
# Added to the rows of a table where nulls were left out of the arguments of calls.
NULL_ARGUMENTS = "null_arguments"
NEUTRAL |= {NULL_ARGUMENTS}
_NEUTRAL_IN_A_TURN = NEUTRAL | _words("turn turn_id round round_id index markdown truncated end_turn status extra")


class _Plan(NamedTuple):
    neutral: tuple[str, ...]
    others: tuple[str, ...]


@lru_cache(maxsize=2048)
def _plan(shape: tuple[str, ...], used: frozenset[str], ignored: frozenset[str], in_a_turn: bool) -> _Plan:
    """Classify the unused keys of a row or turn. Rows of one file have few shapes, so each is decided once."""
    known = _NEUTRAL_IN_A_TURN if in_a_turn else NEUTRAL
    spare = [key for key in shape if key not in used]
    neutral = [key for key in spare if key in ignored or _plain(key) in known]
    return _Plan(tuple(neutral), tuple(key for key in spare if key not in neutral))


def _plain(key: str) -> str:
    return str(key).lower().replace("-", "_").replace(" ", "_")


def unused_keys(
    record: Mapping[str, Any],
    used: frozenset[str],
    ignored: frozenset[str],
    *,
    where: str = "",
    role: str = "",
    said: Container[object] = (),
) -> tuple[str, ...]:
    """Return the keys of ``record`` that training ignores.

    Args:
        used: keys that are read.
        ignored: keys that the user chose to ignore.
        where: the prefix of a key in an error.
        role: the role of a turn, empty for a whole row.
        said: texts that are read; a key that repeats one loses nothing.

    Raises:
        RecordError: the content of a key would be lost.
    """
    neutral, others = _plan(tuple(record), used, ignored, bool(role))
    for key in neutral + others:
        if type(record[key]) in _CONTAINERS:
            refuse_depth(record[key], where + key)
    if not others:
        return neutral
    lost = [key for key in others if _is_lost(key, record[key], role, said)]
    if lost:
        raise _lost(sorted(lost, key=lambda key: _plain(key) not in _ADVICE), used, where)
    return neutral + tuple(key for key in others if carries(record[key]))


def refuse_depth(value: object, field: str) -> None:
    """Refuse a value that is nested too deeply to walk.

    Raises:
        RecordError: it is.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [part for part in level if isinstance(part, _CONTAINERS)]
        if not inner:
            return
        level = [each for part in inner for each in (part.values() if isinstance(part, dict) else part)]
    raise RecordError(field, f"is nested too deeply: more than {MAX_DEPTH} levels; remove it")


def role_advice(role: str) -> str | None:
    """Return what to do about a role that cannot be trained on, None if it is not such a role."""
    return _ROLE_ADVICE.get(_plain(role))


def advice_for(keys: Collection[str]) -> str:
    """Return what to do about the first of ``keys`` with content that cannot be trained on, or an empty text."""
    return next((f"; {str(key)[:40]} {_ADVICE[_plain(key)]}" for key in keys if _plain(key) in _ADVICE), "")


def _is_lost(key: str, value: object, role: str, said: Container[object]) -> bool:
    if not carries(value) or (isinstance(value, str) and value in said):
        return False
    if _plain(key) in SWITCHES and isinstance(value, (bool, int, float)):
        return value != (1 if role in ("", "assistant") else 0)
    return True


def _lost(keys: list[str], used: frozenset[str], where: str) -> RecordError:
    first = keys[0]
    if advice := _ADVICE.get(_plain(first)):
        return RecordError(
            f"{where}{first}", f"{advice} (data.ignore_keys: [{first[:40]}] trains without it)", "unused_key"
        )
    meant = did_you_mean(_plain(first), sorted(used), cutoff=MISSPELT)
    names = ", ".join(key[:40] for key in keys[:6])
    message = (f"holds content that training does not use; remove the key, or train without it: "
               f"data.ignore_keys: [{names}] (--ignore-key){meant}")  # fmt: skip
    return RecordError(f"{where}{first}", message, "unused_key")


def carries(value: object) -> bool:
    """Tell whether a value has content: it is not null, blank, or a list or object of such values only."""
    if not isinstance(value, _CONTAINERS):
        return value is not None and not (isinstance(value, str) and not value.strip())
    pending = [value]
    while pending:
        part = pending.pop()
        for each in part.values() if isinstance(part, dict) else part:
            if isinstance(each, _CONTAINERS):
                pending.append(each)
            elif each is not None and not (isinstance(each, str) and not each.strip()):
                return True
    return False
