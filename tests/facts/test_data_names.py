"""Names of data: what is one, what it says, and what a wrong one should have been."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.facts.data_names import DataName, is_name, parse, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:owner/name", DataName("huggingface", "owner/name")),
        ("ms:owner/name.v2:test", DataName("modelscope", "owner/name.v2", split="test")),
        ("hf:owner/name:en:test_sft", DataName("huggingface", "owner/name", subset="en", split="test_sft")),
        ("hf:owner/name/data/*.parquet", DataName("huggingface", "owner/name", files="data/*.parquet")),
        ("https://host:8/a%20b.jsonl?v=1", DataName("https", "https://host:8/a%20b.jsonl?v=1")),
        ("http://host/a.jsonl", DataName("https", "http://host/a.jsonl")),
        ("s3://bucket/a/*.jsonl", DataName("s3", "s3://bucket/a/*.jsonl")),
        ("oss://bucket/a.jsonl", DataName("oss", "oss://bucket/a.jsonl")),
        (
            "https://huggingface.co/datasets/o/n/resolve/main/a.jsonl",
            DataName("https", "https://huggingface.co/datasets/o/n/resolve/main/a.jsonl"),
        ),
    ],
)
def test_a_name_is_read(text: str, expected: DataName) -> None:
    assert is_name(text)
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["chats.json", "/data/hf:x.json", "./hf:o/n", "~/x", "a:b/c", "C:/x.json", ""])
def test_a_path_is_no_name(text: str) -> None:
    assert not is_name(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf:name", "names no data set: write hf:owner/name"),
        ("hf:owner/name:", "no name"),
        ("hf:a/b:c:d:e", "names no data set"),
        ("hf:a/../b", "names no data set"),
        ("HF:owner/name", "write hf:owner/name"),
        ("huggingface:owner/name", "write hf:owner/name"),
        ("modelscope:owner/name", "write ms:owner/name"),
        ("hf://datasets/owner/name", "write hf:owner/name, without slashes"),
        ("hf:owner/name@v1:train", "'revision', beside 'path'"),
        ("hf:owner/name:train[:100]", "with a weight below 1"),
        ("hf:owner/name/a.jsonl:train", "names files and a split"),
        ("https://huggingface.co/datasets/o/n", "the page of a data set, not its data; write 'hf:o/n'"),
        ("https://hf-mirror.com/datasets/o/n/viewer/x", "write 'hf:o/n'"),
        ("https://hf.co/datasets/o/n/blob/main/d/a.jsonl", "write 'hf:o/n/d/a.jsonl'"),
        ("https://www.modelscope.cn/datasets/o/n/files", "write 'ms:o/n'"),
        ("https://host/", "names no file"),
        ("https://host/a/*.jsonl", "write each file"),
        ("https://host/a#b", "remove it"),
        ("https://[::1/a", "is not an address"),
        ("s3:/bucket/a", "write s3:// with two slashes"),
        ("s3://bucket", "names no file; write s3://bucket/file.jsonl"),
        ("gs://bucket/a", "gs:// is not supported; use https://"),
        ("file:///data/a.json", "write the path itself: /data/a.json"),
    ],
)
def test_a_wrong_name_says_what_to_write(text: str, message: str) -> None:
    assert is_name(text)
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a.jsonl?X-Amz-Signature=c2VjcmV0",
        "https://host/a.jsonl?v=1&sig=c2VjcmV0",
        "https://host/a.jsonl?token=c2VjcmV0",
        "https://host/a.jsonl?OSSAccessKeyId=c2VjcmV0",
        "https://user:c2VjcmV0@host/a.jsonl",
        "s3://key:c2VjcmV0@bucket/a.jsonl",
        "oss://c2VjcmV0@bucket/a.jsonl",
        "gs://u:c2VjcmV0@bucket/a",
        "https://u:c2VjcmV0@[bad/a",
        "https://u:c2VjcmV0@huggingface.co/datasets/o/n",
        "s3:/key:c2VjcmV0@bucket/a",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse(text)
    assert "c2VjcmV0" not in str(caught.value)


def test_queries_are_left_out_of_messages() -> None:
    assert shown("GET https://u:p@host/a?key=x failed, url='s3://b/c?d'") == (
        "GET https://...@host/a?... failed, url='s3://b/c?...'"
    )


@given(
    name=st.text(max_size=40) | st.from_regex(r"(hf|ms|https?|s3|oss):/{0,2}[a-z/:*@?#\[\].-]{0,30}", fullmatch=True)
)
def test_any_text_is_a_path_a_name_or_refused(name: str) -> None:
    try:
        assert not is_name(name) or parse(name).name
    except ValueError as error:
        assert str(error)
