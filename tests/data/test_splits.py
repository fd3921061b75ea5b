"""Which files belong to a split, by the README's configs and by names."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.data.splits import choose, subsets_of
from qwen_job.errors import DataError
from qwen_job.facts.data_names import DataName, parse


def files(paths: str, name: str = "hf:o/n", card: str = "") -> list[str]:
    return choose(paths.split(), parse(name), card).files


def card(configs: str) -> str:
    return f"---\nlicense: mit\nconfigs:\n{configs}\n---\n# Data\n"


TWO = card(
    """
- config_name: en
  data_files:
  - split: train
    path: en/train-*
  - split: test
    path: [en/test.jsonl, "en/more/**"]
- config_name: zh
  data_files: zh/*.jsonl
"""
)
THERE = "README.md en/train-1.parquet en/train-2.parquet en/test.jsonl en/more/a/b.jsonl zh/a.jsonl zh/b.jsonl"


@pytest.mark.parametrize(
    ("paths", "name", "expected"),
    [
        ("chats.jsonl README.md", "hf:o/n", ["chats.jsonl"]),
        ("a.jsonl b.jsonl", "hf:o/n", ["a.jsonl", "b.jsonl"]),
        ("train.json test.json", "hf:o/n", ["train.json"]),
        ("train.json test.json", "hf:o/n:test", ["test.json"]),
        ("data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet data/test_sft-00000-of-00001.parquet",
         "hf:o/n:test_sft", ["data/test_sft-00000-of-00001.parquet"]),
        ("data/train-00000-of-00001-5f3c.parquet", "hf:o/n", ["data/train-00000-of-00001-5f3c.parquet"]),
        ("my-dev-set.jsonl training_rows.jsonl", "hf:o/n:validation", ["my-dev-set.jsonl"]),
        ("train/a.jsonl.gz train/b.jsonl.zst eval/c.jsonl", "hf:o/n", ["train/a.jsonl.gz", "train/b.jsonl.zst"]),
        ("trainer.jsonl", "hf:o/n", ["trainer.jsonl"]),
        ("default/train/0000.parquet default/test/0000.parquet", "hf:o/n:default:test", ["default/test/0000.parquet"]),
        ("a/x.jsonl b/x.jsonl b/c/y.jsonl", "hf:o/n/b/*.jsonl", ["b/x.jsonl"]),
        ("a/x.jsonl b/x.jsonl b/c/y.jsonl", "hf:o/n/b", ["b/c/y.jsonl", "b/x.jsonl"]),
        ("a/x.jsonl b/x.jsonl b/c/y.jsonl", "hf:o/n/**/y.jsonl", ["b/c/y.jsonl"]),
        ("dataset_infos.json .hidden/x.json x.json state.json", "ms:o/n", ["x.json"]),
        ("[a].jsonl a.jsonl", "hf:o/n/[z-a].jsonl", None),
    ],
)  # fmt: skip
def test_files_are_chosen_by_name(paths: str, name: str, expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(DataError, match="no file has that name"):
            files(paths, name)
    else:
        assert files(paths, name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf:o/n:en:train", ["en/train-1.parquet", "en/train-2.parquet"]),
        ("hf:o/n:en:test", ["en/more/a/b.jsonl", "en/test.jsonl"]),
        ("hf:o/n:zh:train", ["zh/a.jsonl", "zh/b.jsonl"]),
    ],
)
def test_the_readme_says_which_files_belong_to_a_subset(name: str, expected: list[str]) -> None:
    assert files(THERE, name, TWO) == expected


def test_the_default_subset_is_taken() -> None:
    configs = "- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  default: true\n  data_files: b.jsonl"
    assert files("a.jsonl b.jsonl", "hf:o/n", card(configs)) == ["b.jsonl"]


def test_a_folder_of_the_readme_is_searched_by_names() -> None:
    configs = "- config_name: a\n  data_dir: a\n- config_name: b\n  data_dir: ./b"
    assert files("a/train.json b/train.json b/test.json", "hf:o/n:b:test", card(configs)) == ["b/test.json"]


def test_files_of_no_split_are_named() -> None:
    chosen = choose(["extra.jsonl", "test.jsonl", "train.jsonl"], parse("hf:o/n"), "")
    assert (chosen.files, chosen.left_out) == (["train.jsonl"], ["extra.jsonl"])


@pytest.mark.parametrize(
    ("paths", "name", "text", "message"),
    [
        ("test.json", "hf:o/n", "", r"hf:o/n: has no split 'train'; its splits: test; write one .* e.g. hf:o/n:test$"),
        (THERE, "hf:o/n", TWO, r"has the subsets en, zh; write one of them, e.g. hf:o/n:en$"),
        (THERE, "hf:o/n:zh", TWO, r"has the subsets en, zh; write one of them, e.g. hf:o/n:zh:train$"),
        (THERE, "hf:o/n:ne:train", TWO, r"has no subset 'ne'.*its subsets: en, zh"),
        (THERE, "hf:o/n:en:tain", TWO, r"has no split 'tain'; its splits: train, test; did you mean 'train'\?$"),
        ("a.csv n.py", "hf:o/n", "", r"needs the script n.py, and scripts are not run.*revision: refs/convert/parquet"),
        ("a.csv b.txt", "hf:o/n", "", r"holds no JSON, JSON Lines or Parquet; its files: a.csv, b.txt"),
        ("train.jsonl train.parquet", "hf:o/n", "", r"train.* may hold the same rows in two forms; name the files"),
        ("train.jsonl train.jsonl.gz", "hf:o/n", "", r"may hold the same rows in two forms.*e.g. hf:o/n/train.jsonl$"),
        ("a.jsonl", "hf:o/n", "---\nconfigs: [\n---\n", r"README.md: its front matter cannot be read"),
        (" ".join(f"{n}.csv" for n in range(99)), "hf:o/n", "", "and 91 more"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_is_refused_with_what_there_is(paths: str, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        files(paths, name, text)


@pytest.mark.parametrize(
    "text",
    ["", "# no front matter", "---\n---\n", "---\nconfigs: 3\n---\n", "---\n- a\n---\n", "---\nconfigs: [3]\n---\n"],
)
def test_a_readme_without_configs_declares_nothing(text: str) -> None:
    assert subsets_of(text) == []


PATHS = st.lists(
    st.from_regex(
        r"([a-z]{1,5}/){0,2}(train|test|dev|x|\[a\*)[-_0-9]{0,3}\.(jsonl|parquet|json\.gz|csv)", fullmatch=True
    )
)
GLOBS = st.from_regex(r"[a-z*?/\[\]!.-]{1,12}", fullmatch=True)
CARDS = st.text(max_size=60) | st.builds(
    lambda values: f"---\n{json.dumps({'configs': values})}\n---\n",
    st.recursive(
        st.none() | st.text(max_size=4) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["config_name", "data_files", "split", "path", "data_dir", "default"]), inner
            )
        ),
        max_leaves=12,
    ),
)


@given(paths=PATHS, files=st.just("") | GLOBS, card=CARDS)
def test_any_listing_gives_readable_files_of_it_or_is_refused(paths: list[str], files: str, card: str) -> None:
    try:
        chosen = choose(paths, DataName("huggingface", "o/n", files), card).files
    except DataError as error:
        assert str(error)
    else:
        assert chosen and set(chosen) <= set(paths)
        assert not [path for path in chosen if path.endswith(".csv")]
