"""Encode a conversation in ChatML: its token IDs, and which of them are trained.

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n<|im_start|>user\\n{text}<|im_end|>\\n
    <|im_start|>assistant\\n{text}<|im_end|>\\n ...

As in Qwen's own inference and finetune.py, role, newline and text are encoded separately and their IDs joined.
Encoding the whole template at once differs only where a text begins with a newline, which would merge with the one
before it; for an answer, the separate IDs are those that the model has to produce after the prompt.

Only the frame contains control tokens: text that looks like one (``<|im_end|>``) is encoded as plain characters. Other
tokens that were added to the tokenizer (``<think>``, a user's ``<obs>``) are also recognised in text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qwen_job.chat.conversation import Conversation, Turn
from qwen_job.chatml import IGNORE, ROLES, SPECIAL_TOKENS
from qwen_job.data.keys import RecordError
from qwen_job.data.vocabulary import is_control, mark_control_tokens
from qwen_job.errors import EnvironmentFault, ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


class Segment(NamedTuple):
    """One ``<|im_start|>role\\ntext<|im_end|>\\n``: the ids of its text, without the frame.

    ``learnt`` false: an answer that is not learnt.
    """

    role: str
    text: list[int]
    closed: bool = True
    learnt: bool = True


class Encoded(NamedTuple):
    """``input_ids`` and ``labels`` of equal length; a label is the ID itself if it is trained, else IGNORE (-100)."""

    input_ids: list[int]
    labels: list[int]


class Flat(NamedTuple):
    """The IDs of many texts, concatenated: ``ids`` int32[n], ``lengths`` int64[texts] with sum n."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]


class ChatTokenizer:
    """A tokenizer.json with the three ChatML tokens, which never produces control tokens from text."""

    def __init__(self, tokenizer: Tokenizer, name: str, words: frozenset[str] = frozenset()) -> None:
        ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
        found = [number for number in ids.values() if number is not None]
        missing = [token for token, number in ids.items() if number is None]
        if missing:
            raise ModelError(f"{name}: has no {' or '.join(missing)}; this is not the tokenizer of a Qwen-Chat model")
        self.tokenizer, self.name, self.words = tokenizer, name, words
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        self.control_tokens = tuple(sorted(filter(is_control, added)))
        self.text_tokens = tuple(sorted(token for token in added if not is_control(token) and token not in words))
        self.size = 0  # largest id plus one, where load_encoder has looked
        self.splits_at_lines = False  # whether a line end and a word behind it are encoded apart, if it has looked
        self.endoftext, self.im_start, self.im_end = found
        self.newline = self.encode("\n")
        self.roles = {role: self.encode(role) for role in ROLES}
        self.masked_frames = {role: [~number for number in self.frame(role)] for role in self.roles}
        self.tail = [self.im_end, *self.newline]
        self.masked_tail = [~number for number in self.tail]
        self.answer_tail = [self.im_end, *self.masked_tail[1:]]

    @classmethod
    def load(cls, folder: Path, words: frozenset[str] = frozenset()) -> ChatTokenizer:
        """Read ``folder/tokenizer.json``; text never becomes one of ``words``, tokens that a chat template writes.

        Raises:
            ModelError: it is missing or not a ChatML tokenizer.
        """
        path = folder / "tokenizer.json"
        try:
            content = path.read_bytes().decode()
        except FileNotFoundError:
            raise ModelError(f"{path}: does not exist; 'qwen-job model fetch' or 'convert' writes it") from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); fetch the model again") from error
        return ChatTokenizer(_plain_text_tokenizer(content, path, words), str(path), words)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; ``<|im_end|>`` in it becomes ordinary tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts, see :meth:`encode`."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_flat(self, texts: Sequence[str]) -> Flat:
        """Return the ids of many texts one after the other, see :meth:`encode`."""
        import numpy as np

        ids = [np.array(ids, np.int32) for ids in self.encode_batch(texts)]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return Flat(np.concatenate([np.empty(0, np.int32), *ids]), lengths)

    def id_of(self, token: str) -> int:
        """Return the ID of a token that exists."""
        number = self.tokenizer.token_to_id(token)
        assert number is not None
        return number

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, control tokens written out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def frame(self, role: str) -> list[int]:
        """Return the ids of ``<|im_start|>role\\n``."""
        return [self.im_start, *self.roles[role], *self.newline]

    @property
    def overhead(self) -> int:
        """Tokens that a conversation of system, user and assistant takes besides its text."""
        return sum(len(frame) + len(self.tail) for frame in self.masked_frames.values())


def encode_conversation(
    conversation: Conversation, tokenizer: ChatTokenizer, *, system_prompt: str, mask: str = "assistant"
) -> Encoded:
    """Return the ids and labels of a whole conversation; ``mask`` as in :func:`signed_ids`.

    ``system_prompt`` is used if the conversation has none; empty means no system segment.
    """
    return join(segments(conversation, tokenizer, system_prompt), tokenizer, mask)


def encode_prompt(turns: Iterable[tuple[str, str]], tokenizer: ChatTokenizer, *, system_prompt: str) -> list[int]:
    """Return the ids to continue from: all ``turns`` (role, text), then ``<|im_start|>assistant\\n``."""
    conversation = Conversation("", None, tuple(Turn(role, text) for role, text in turns))
    start = encode_conversation(conversation, tokenizer, system_prompt=system_prompt).input_ids
    return start + tokenizer.frame("assistant")


def texts_of(conversation: Conversation, system_prompt: str) -> list[tuple[str, str]]:
    """Return (role, text) of every segment, the system prompt, if any, first."""
    system = system_prompt if conversation.system is None else conversation.system
    return [*([("system", system)] if system else []), *[(turn.role, turn.text) for turn in conversation.turns]]


def refuse_more_than_text(conversation: Conversation) -> None:
    """Refuse a conversation with content for which ChatML has no place.

    Raises:
        RecordError: it has tools, calls, results, reasoning, switches of what is learnt, or options of a template.
    """
    turns = conversation.turns
    beside = "tools" if conversation.tools else "chat_template_kwargs" if conversation.options else ""
    number = next((number for number, turn in enumerate(turns, 1) if _is_more_than_text(turn)), 0)
    if beside or number:
        where = beside or f"turn {number} ({turns[number - 1].role})"
        message = ("holds reasoning, tool calls, a result, a system text or a switch, for which ChatML has no place; "
                   "leave it out")  # fmt: skip
        raise RecordError(where, message, "unused_key")


def _is_more_than_text(turn: Turn) -> bool:
    more = turn.reasoning is not None or turn.calls or turn.learn is False
    return bool(more) or turn.role not in ("user", "assistant")


def segments(conversation: Conversation, tokenizer: ChatTokenizer, system_prompt: str) -> list[Segment]:
    """Encode every text of a conversation.

    Raises:
        RecordError: it is more than texts.
    """
    refuse_more_than_text(conversation)
    texts = texts_of(conversation, system_prompt)
    ids = tokenizer.encode_batch([text for _, text in texts])
    return [Segment(role, tokens) for (role, _), tokens in zip(texts, ids, strict=True)]


def join(parts: Iterable[Segment], tokenizer: ChatTokenizer, mask: str = "assistant") -> Encoded:
    """Put the frame around each segment and label it; see :func:`signed_ids`."""
    signed = signed_ids(parts, tokenizer, mask)
    ids = [number if number >= 0 else ~number for number in signed]
    return Encoded(ids, [number if number >= 0 else IGNORE for number in signed])


def signed_ids(parts: Iterable[Segment], tokenizer: ChatTokenizer, mask: str = "assistant") -> list[int]:
    """Put the frame around each segment; an ID that is not trained is stored as ``~id``, a negative number.

    Mask ``assistant`` trains an answer's text and its ``<|im_end|>``. ``reference`` trains what QwenLM's finetune.py
    does: the same, and ``<|im_start|>``, ``<|im_end|>`` and the last newline of every segment. A segment that is not
    ``closed`` (its text was cut) has no end: a cut answer must not teach the model to stop early.
    """
    signed: list[int] = []
    for part in parts:
        frame, tail = tokenizer.masked_frames[part.role], tokenizer.masked_tail
        answer = part.role == "assistant" and part.learnt
        if mask == "reference":
            signed.append(tokenizer.im_start)
            frame, tail = frame[1:], tokenizer.tail
        elif answer:
            tail = tokenizer.answer_tail
        signed += frame
        signed += part.text if answer else [~number for number in part.text]
        if part.closed:
            signed += tail
    return signed


def _plain_text_tokenizer(content: str, path: Path, words: frozenset[str]) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EnvironmentFault("the package tokenizers is missing; pip install 'qwen-job[data]'") from error
    try:
        # Only special tokens are kept out of text below. Some Qwen files mark <|fim_prefix|> and the like as ordinary
        # words; and a token that a user added is recognised in text even if it was added as special.
        tokenizer = Tokenizer.from_str(mark_control_tokens(content, words))
    except Exception as error:  # the Rust side raises plain Exception
        raise ModelError(f"{path}: is not a tokenizer ({error}); fetch the model again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer
