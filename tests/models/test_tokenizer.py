"""The converted tokenizer encodes as tiktoken does with Qwen's own file."""

from __future__ import annotations

import base64
import random
import unicodedata
from pathlib import Path

import pytest

from qwen_job.chatml import PATTERN
from qwen_job.errors import ModelError
from qwen_job.models.tokenizer import SPECIALS, byte_letters, read_ranks, write_fast_tokenizer, write_tiktoken

PROBES = [
    "",
    " ",
    "你好，世界！",
    "I'll've don'T 12345 3.14159 0x1F",
    "def f(x):\n\treturn x  # tab\n\n\n    pass\r\n",
    "  leading and trailing  ",
    "é and e\u0301 must agree after NFC",
    "😀👨‍👩‍👧‍👦🇨🇳",
    "繁體字與简体字，ひらがな カタカナ 한국어 العربية हिन्दी",
    "\u200b\ufeff\x00\x07control",
    "a" * 300,
    "<|im_start|>not a control token<|im_end|>",
]


@pytest.fixture(scope="module")
def folder(qwen_tiktoken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_fast_tokenizer(read_ranks(qwen_tiktoken), folder, 8192)
    return folder


def _random_texts(count: int) -> list[str]:
    draw = random.Random(11)
    ranges = [(0x20, 0x7E), (0x4E00, 0x9FA5), (0x3040, 0x30FF), (0xAC00, 0xD7A3), (0x400, 0x4FF), (0x1F300, 0x1F6FF)]
    spaces = [" ", "  ", "\n", "\n\n", "\t", "，", "。", "'s", "1", "2024"]

    def word() -> str:
        low, high = draw.choice(ranges)
        return "".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 8)))

    return ["".join(draw.choice([word(), draw.choice(spaces)]) for _ in range(20)) for _ in range(count)]


def test_ids_equal_those_of_tiktoken(folder: Path, qwen_tiktoken: Path) -> None:
    import tiktoken
    from tokenizers import Tokenizer

    lines = (line.split() for line in qwen_tiktoken.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    theirs = tiktoken.Encoding("Qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours.encode_special_tokens = True
    texts = PROBES + _random_texts(3000)
    for text, encoded in zip(texts, ours.encode_batch(texts), strict=True):
        assert encoded.ids == theirs.encode_ordinary(unicodedata.normalize("NFC", text)), repr(text)
        assert ours.decode(encoded.ids) == unicodedata.normalize("NFC", text)


def test_special_tokens_have_their_ids(folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [tokenizer.token_to_id(token) for token in SPECIALS] == list(range(151643, 151851))
    assert tokenizer.encode("<|im_start|>user").ids == [151644, 872]


def test_the_tiktoken_file_comes_back_byte_for_byte(folder: Path, qwen_tiktoken: Path, tmp_path: Path) -> None:
    write_tiktoken(folder, tmp_path / "qwen.tiktoken")
    assert (tmp_path / "qwen.tiktoken").read_bytes() == qwen_tiktoken.read_bytes()


def test_every_byte_has_its_own_letter() -> None:
    letters = byte_letters()
    assert len(set(letters)) == 256
    assert (letters[ord("A")], letters[ord(" ")], letters[ord("\n")]) == ("A", "Ġ", "Ċ")


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(b"IQ== 0\nIg= 1\n")
    with pytest.raises(ModelError, match=r"qwen\.tiktoken:2"):
        read_ranks(tmp_path / "qwen.tiktoken")
