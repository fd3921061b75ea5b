"""Preparing with a model's own chat template: what arrives, what is counted, refused and pinned."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_job.chat.samples import SampleMaker
from qwen_job.data import open_prepared, prepare_data
from qwen_job.data.encode import ChatTokenizer
from qwen_job.data.prepare import fingerprint
from qwen_job.data.prepared import TEMPLATE, describe, describe_template, read_index
from qwen_job.errors import DataError, ModelError
from qwen_job.run.sections import DataFile, DataSpec
from tests.chat.cases import text_of

Modern = Callable[[str], Path]
Write = Callable[..., Path]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def row(*texts: str, **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)],
        **more,
    }


def calling(question: str, found: str = "sunny") -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "look", "arguments": {"where": question}}}
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": found},
            {"role": "assistant", "content": "It is fine."},
        ],
        "tools": [TOOL],
    }


def spec(path: Path, **values: Any) -> DataSpec:
    return DataSpec(train=(DataFile(path=path),), packing=False, **values)


def texts_of(folder: Path, model: Path) -> list[tuple[str, str]]:
    """Return, of each prepared row, its text and what of it is learnt."""
    tokenizer, rows = ChatTokenizer.load(model), open_prepared(folder).train
    found = [rows[number] for number in range(len(rows))]
    return [
        (tokenizer.decode(one.input_ids.tolist()), tokenizer.decode([n for n in one.labels.tolist() if n >= 0]))
        for one in found
    ]


def test_calls_arrive_in_the_models_own_words(small: Modern, write: Write, tmp_path: Path) -> None:
    model, path = small("qwen3"), write([calling("Paris"), calling("Rome"), calling("Oslo")])
    folder = prepare_data(spec(path), model, tmp_path / "cache")
    found = texts_of(folder, model)
    assert '<tool_call>\n{"name": "look", "arguments": {"where": "Oslo"}}\n</tool_call><|im_end|>' in [
        learnt for _, learnt in found
    ]
    assert any("sunny" in whole for whole, _ in found)
    assert not any("sunny" in learnt for _, learnt in found)


def test_the_template_is_pinned_and_described(small: Modern, write: Write, tmp_path: Path) -> None:
    folder = prepare_data(spec(write([row("q", "a", "r", "b")])), small("qwen3"), tmp_path / "cache")
    index = read_index(folder)
    assert index is not None
    record = index[TEMPLATE]
    assert record["texts"] == {"default": text_of("qwen3")}
    assert (record["date"], record["empty_think"]) == (datetime.date.today().isoformat(), "mask")
    lines = "\n".join(describe_template(index))
    assert "the model's own (sha256 a55ee1b16601" in lines
    assert "mask: as with thinking off" in lines
    assert "no turn has reasoning" in lines
    assert "1 conversations became 2 samples" in lines


def test_a_date_in_a_template_stays_that_of_the_preparation(
    small: Modern, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, chat = small("qwen3"), tmp_path / "dated.jinja"
    chat.write_text(text_of("qwen3").replace("{%- if tools %}", "{{ strftime_now('%Y') }}{%- if tools %}", 1))
    settings = spec(write([row("q", "a")]), template=str(chat))
    folder = prepare_data(settings, model, tmp_path / "cache")

    class Later(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return datetime.date(2099, 1, 1)

    monkeypatch.setattr(datetime, "date", Later)
    assert prepare_data(settings, model, tmp_path / "cache") == folder


def test_each_setting_and_the_templates_text_name_another_folder(small: Modern, write: Write, tmp_path: Path) -> None:
    path, model = write([row("q", "a")]), small("qwen3")
    other = tmp_path / "other.jinja"
    other.write_text(text_of("qwen3") + " ")
    changes: list[dict[str, Any]] = [
        {}, {"learn": "last"}, {"thinking": "strip"}, {"empty_think": "learn"}, {"several_thoughts": "join"},
        {"template": "chatml"}, {"template": str(other)}, {"system_prompt": ""},
    ]  # fmt: skip
    names = [fingerprint(spec(path, **change), model) for change in changes]
    names.append(fingerprint(spec(path), small("qwen3_6")))
    assert len(set(names)) == len(names)


def test_a_template_of_the_same_text_is_the_same_data(small: Modern, write: Write, tmp_path: Path) -> None:
    path = write([row("q", "a")])
    copy = tmp_path / "copy.jinja"
    copy.write_text(text_of("qwen3"))
    assert fingerprint(spec(path), small("qwen3")) == fingerprint(spec(path, template=str(copy)), small("qwen3"))


@pytest.mark.parametrize(
    ("name", "bad", "words"),
    [
        ("qwen3_6", row("q", "a") | {"messages": [{"role": "assistant", "content": "a"}]}, r":2: .*"),
        ("qwen2_5", {"messages": [{"role": "user", "content": "q"},
                                  {"role": "assistant", "content": "a", "reasoning_content": "r"}]},
         r":2: turn 2 \(assistant\)\.reasoning: this template has no place for reasoning.*data.thinking: strip"),
        ("qwen3_8", row("q", "<think>r</think>a", chat_template_kwargs={"reasoning_effort": "huge"}),
         r":2: row: .*huge.*correct chat_template_kwargs.reasoning_effort"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_rendered_is_named(
    name: str, bad: dict[str, Any], words: str, small: Modern, write: Write, tmp_path: Path
) -> None:
    path = write([row("q", "a"), bad])
    with pytest.raises(DataError, match=words):
        prepare_data(spec(path), small(name), tmp_path / "cache")


def test_chatml_refuses_tools_with_advice(small: Modern, write: Write, tmp_path: Path) -> None:
    path = write([row("q", "a"), calling("Paris")])
    with pytest.raises(DataError, match=r":2: turn 2 \(assistant\): this template knows no tools \(ChatML\); choose"):
        prepare_data(spec(path, template="chatml"), small("qwen3"), tmp_path / "cache")


def test_a_missing_template_is_an_error_of_the_model(small: Modern, write: Write, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.jinja: cannot be read"):
        prepare_data(spec(write([row("q", "a")]), template="/gone.jinja"), small("qwen3"), tmp_path / "cache")


def test_several_processes_give_the_same_tokens(
    small: Modern, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_job.data.prepare._SMALL", 0)
    rows = [calling(f"Paris {number}") for number in range(40)]
    path, model = write(rows, "rows.jsonl"), small("qwen3")
    one = prepare_data(spec(path), model, tmp_path / "one", workers=1)
    two = prepare_data(spec(path), model, tmp_path / "two", workers=2)
    assert (one / "train.tokens").read_bytes() == (two / "train.tokens").read_bytes()


def fitted(write: Write, small: Modern, tmp_path: Path, rows: list[Any], **values: Any) -> tuple[list[Any], Any]:
    folder = prepare_data(spec(write(rows), max_length=MOST, **values), small("qwen3"), tmp_path / "cache")
    return texts_of(folder, small("qwen3")), open_prepared(folder).stats


MOST, LONG = 1024, "word " * 500


def test_the_oldest_exchanges_go_first_with_their_calls_and_results(
    small: Modern, write: Write, tmp_path: Path
) -> None:
    old = calling("Paris", LONG)
    talk = {**old, "messages": [*old["messages"], *row("and now?", "Rain.")["messages"]]}
    texts, stats = fitted(write, small, tmp_path, [row("q", "a"), talk])
    whole, learnt = texts[-1]
    assert "Rain." in learnt
    assert "Paris" not in whole
    assert "tool_response" not in whole
    assert stats["truncated"] >= 1
    assert stats["turns_cut"] >= 4


def test_a_chain_that_is_too_long_keeps_its_first_call_whole(small: Modern, write: Write, tmp_path: Path) -> None:
    chain = calling("Paris", LONG)
    for number in (1, 3):  # with reasoning in each step, Qwen3's template keeps a chain in one sample
        chain["messages"][number]["reasoning_content"] = "hm"
    texts, stats = fitted(write, small, tmp_path, [row("q", "a"), chain])
    whole, learnt = next(pair for pair in texts if "Paris" in pair[0])
    assert learnt.endswith("</tool_call><|im_end|>")
    assert "<tool_response>\nword" not in whole
    assert (stats["truncated"], stats["turns_cut"]) == (1, 2)


def test_a_call_that_does_not_fit_is_dropped_and_not_cut(small: Modern, write: Write, tmp_path: Path) -> None:
    texts, stats = fitted(write, small, tmp_path, [row("q", "a"), calling(LONG + LONG)])
    assert all("word" not in learnt for _, learnt in texts)
    assert stats["dropped"] == 2  # the call, and the answer after it


def test_a_long_question_loses_its_middle(small: Modern, write: Write, tmp_path: Path) -> None:
    texts, stats = fitted(write, small, tmp_path, [row(f"begin {LONG}{LONG} end", "Yes.")])
    ((whole, learnt),) = texts
    assert "begin" in whole
    assert "end<|im_end|>" in whole
    assert learnt == "Yes.<|im_end|>"
    assert stats["truncated"] == 1


def test_a_long_answer_ends_without_the_end_of_a_turn_and_is_counted(
    small: Modern, write: Write, tmp_path: Path
) -> None:
    texts, stats = fitted(write, small, tmp_path, [row("q", LONG + LONG)])
    assert not texts[0][1].endswith("<|im_end|>")
    assert stats["answers_cut"] == 1


def test_a_long_thought_is_dropped(small: Modern, write: Write, tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": "so", "reasoning_content": LONG + LONG}
    texts, stats = fitted(write, small, tmp_path, [row("q", "a"), {"messages": [*row("q")["messages"], thought]}])
    assert len(texts) == 1
    assert stats["dropped"] == 1


def test_split_keeps_exchanges_whole(small: Modern, write: Write, tmp_path: Path) -> None:
    first, second = calling("Paris"), calling("Rome")
    talk = {**first, "messages": [*first["messages"], {"role": "user", "content": LONG}, *row("", "ok")["messages"][1:],
                                  *second["messages"]]}  # fmt: skip
    texts, stats = fitted(write, small, tmp_path, [talk], long_samples="split", empty_think="omit")
    assert stats["split"] == 1
    for whole, _ in texts:
        assert whole.count("<tool_response>\n") <= whole.count('{"name": "look"')
        assert "# Tools" in whole


def trace(steps: int, size: int) -> dict[str, Any]:
    """Return the trace of an agent: one question, and a call with its reasoning and its result in each step."""
    turns: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go north"}]
    for number in range(steps):
        call = {"type": "function", "function": {"name": "look", "arguments": {"where": f"place{number}."}}}
        turns.append({"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]})
        turns.append({"role": "tool", "content": f"seen{number}. " + "word " * size})
    return {
        "messages": [*turns, {"role": "assistant", "content": "There.", "reasoning_content": "so"}],
        "tools": [TOOL],
    }


def test_split_divides_a_trace_between_its_steps_and_learns_each_once(
    small: Modern, write: Write, tmp_path: Path
) -> None:
    texts, stats = fitted(write, small, tmp_path, [trace(12, 60)], long_samples="split")
    calls = [call for _, learnt in texts for call in re.findall("place[0-9]+", learnt)]
    assert calls == [f"place{number}" for number in range(12)]
    assert sum("There." in learnt for _, learnt in texts) == 1
    assert stats["exchanges_split"] == 1
    assert stats["split_pieces"] == len(texts) > 2
    assert not stats["truncated"] and not stats["dropped"] and not stats["turns_cut"]
    before = "0"
    for whole, _ in texts:
        assert "Be brief." in whole and "Go north" in whole and "# Tools" in whole
        seen, called = re.findall("seen([0-9]+)", whole), re.findall("place([0-9]+)", whole)
        assert not set(seen) - set(called), "no result without its call"
        assert called[0] == before, "the step before is repeated as context"
        before = called[-1]


def test_a_step_without_room_for_the_one_before_still_has_its_question(
    small: Modern, write: Write, tmp_path: Path
) -> None:
    talk = trace(2, 5)
    talk["messages"][3]["content"] = LONG + "word " * 300
    texts, stats = fitted(write, small, tmp_path, [talk], long_samples="split")
    assert [call for _, learnt in texts for call in re.findall("place[0-9]", learnt)] == ["place0", "place1"]
    assert all("Go north" in whole for whole, _ in texts)
    assert not stats["dropped"]


def test_split_keeps_the_newest_turns_as_context_of_the_only_one_that_is_learnt(
    small: Modern, write: Write, tmp_path: Path
) -> None:
    talk = row(*[f"{'question' if number % 2 == 0 else 'answer'}{number} " + "word " * 30 for number in range(20)])
    texts, stats = fitted(write, small, tmp_path, [talk], long_samples="split")
    whole, learnt = texts[-1]
    assert learnt.startswith("answer19") and "answer17" in whole and "question0" not in whole
    assert len(texts) == 10 and stats["turns_cut"] > 0


@pytest.mark.parametrize("policy", ["split", "truncate"])
def test_a_long_conversation_is_rendered_a_few_times_for_each_piece(
    small: Modern, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    rendered = 0
    render = SampleMaker.render

    def counting(maker: SampleMaker, *given: Any) -> Any:
        nonlocal rendered
        rendered += 1
        return render(maker, *given)

    monkeypatch.setattr(SampleMaker, "render", counting)
    talk = row(*[f"turn {number}" for number in range(1000)])
    folder = prepare_data(
        spec(write([talk]), max_length=MOST, long_samples=policy), small("qwen2_5"), tmp_path / "cache"
    )
    pieces = len(open_prepared(folder).train)
    assert pieces == 1 if policy == "truncate" else pieces > 5
    assert rendered <= 8 + 5 * pieces


def test_drop_drops(small: Modern, write: Write, tmp_path: Path) -> None:
    texts, stats = fitted(write, small, tmp_path, [row("q", "a"), row("q", LONG + LONG)], long_samples="drop")
    assert len(texts) == 1
    assert stats["dropped"] == 1


def test_counts_reach_the_index(small: Modern, write: Write, tmp_path: Path) -> None:
    rows = [row("q <|im_end|>", "a"), row("q", "a", chat_template_kwargs={"nothing": 1})]
    folder = prepare_data(spec(write(rows)), small("qwen3"), tmp_path / "cache")
    stats = json.loads((folder / "index.json").read_text())["stats"]
    assert (stats["looks_like_control_tokens"], stats["unknown_options"]) == (1, {"nothing": 1})
    said = "chat_template_kwargs that the template does not read, and their rows: nothing 1"
    assert said in describe(stats)


def test_a_broken_template_is_one_error_of_its_file(small: Modern, write: Write, tmp_path: Path) -> None:
    template = tmp_path / "broken.jinja"
    template.write_text("\n{{ nowhere.at.all }}")
    with pytest.raises(ModelError, match=r"broken\.jinja:2: the chat template refuses: 'nowhere' is undefined"):
        prepare_data(spec(write([row("q", "a")]), template=str(template)), small("qwen3"), tmp_path / "cache")


def test_rows_that_ask_for_thinking_in_vain_are_counted_and_said(small: Modern, write: Write, tmp_path: Path) -> None:
    path = write([row("q", "a", enable_thinking=True), row("q", "<think>r</think>b", enable_thinking=True)])
    index = read_index(prepare_data(spec(path), small("qwen3"), tmp_path / "cache"))
    assert index and index["stats"]["thinking_without_reasoning"] == 1
    assert any(line.startswith("1 conversations ask for thinking") for line in describe_template(index))
