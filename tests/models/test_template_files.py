"""The exported model keeps the template that training used, byte for byte where nothing has to be added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_job.chat.template import ChatTemplate, find_texts
from qwen_job.chatml import chat_template
from qwen_job.errors import ModelError
from qwen_job.models.template_files import with_system_prompt, write_template
from tests.chat.cases import ALL, EXAMPLES, example, text_of

PLAIN = chat_template("") + "{# own #}"
NAMED = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": f"tools{PLAIN}"}]
HOSTILE = 'say "\\n" {% raw %} {{ x }} #} <|im_end|>\n\té 你好 \u2028 \'\x7f'
SYSTEM_FIRST = "{%- for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}"


def folder_with(folder: Path, config: dict[str, Any], **files: str) -> Path:
    """Write tokenizer_config.json and template files; ``__`` in a name is a slash."""
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    return folder


def exported(source: Path, choice: str = "auto", system_prompt: str | None = None) -> Path:
    """Return the folder that the export writes, with its tokenizer_config.json copied as export.py does."""
    target = source.with_name("exported")
    target.mkdir()
    (target / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    write_template(source, target, choice, system_prompt)
    return target


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tokenizer_config.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ALL)
def test_the_models_own_file_is_kept_byte_for_byte(name: str, tmp_path: Path) -> None:
    source = folder_with(tmp_path / "source", {"eos_token": "<e>"}, chat_template=text_of(name))
    target = exported(source)
    assert (target / "chat_template.jinja").read_bytes() == text_of(name).encode()
    assert config_of(target) == {"eos_token": "<e>"}


@pytest.mark.parametrize("entry", [f"a{PLAIN}\r\n", NAMED])
def test_a_template_in_the_config_stays_there(entry: object, tmp_path: Path) -> None:
    source = folder_with(tmp_path / "source", {"chat_template": entry})
    target = exported(source)
    assert config_of(target) == {"chat_template": entry}
    assert [path.name for path in target.iterdir()] == ["tokenizer_config.json"]


def test_a_model_with_both_keeps_both_and_its_named_files(tmp_path: Path) -> None:
    files = {"chat_template": f"{PLAIN}\r\n", "additional_chat_templates__tool_use": f"two{PLAIN}"}
    target = exported(folder_with(tmp_path / "source", {"chat_template": "old"}, **files))
    assert (target / "chat_template.jinja").read_bytes() == f"{PLAIN}\r\n".encode()
    assert (target / "additional_chat_templates" / "tool_use.jinja").read_text() == f"two{PLAIN}"
    assert config_of(target)["chat_template"] == "old"


@pytest.mark.parametrize("choice", ["chatml", "auto"])
def test_chatml_replaces_another_template_and_serves_a_model_without_one(choice: str, tmp_path: Path) -> None:
    files = {"chat_template": "own"} if choice == "chatml" else {}
    target = exported(folder_with(tmp_path / "source", {}, **files), choice, "Be kind.")
    assert config_of(target)["chat_template"] == chat_template("Be kind.")
    assert not (target / "chat_template.jinja").exists()


def test_a_users_file_is_written_as_it_is_for_every_reader(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_bytes(f"{{# mine #}}\r\n{PLAIN}\n".encode())
    files = {"chat_template": "own", "additional_chat_templates__tool_use": "two"}
    target = exported(folder_with(tmp_path / "source", {"chat_template": NAMED}, **files), str(tmp_path / "mine.jinja"))
    assert (target / "chat_template.jinja").read_bytes() == (tmp_path / "mine.jinja").read_bytes()
    assert config_of(target)["chat_template"] == f"{{# mine #}}\r\n{PLAIN}\n"
    assert not (target / "additional_chat_templates").exists()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_system_prompt_of_the_users_is_the_servers_default(name: str, tmp_path: Path) -> None:
    """With tools and reasoning, at every turn: what a server builds without a system turn is what training built."""
    case = example(name)
    source = folder_with(tmp_path / "source", {}, chat_template=text_of(case["template"]))
    found = find_texts(exported(source, system_prompt=HOSTILE))
    assert found is not None
    server, trained = ChatTemplate(found.texts, "server"), ChatTemplate({"default": text_of(case["template"])}, "own")
    messages = [message for message in case["messages"] if message["role"] != "system"]
    system = {"role": "system", "content": HOSTILE}
    for count in range(1, len(messages) + 1):
        for tools in (case["tools"], None):
            for asks in (True, False):
                asked = {"tools": tools, "add_generation_prompt": asks, **case["template_kwargs"]}
                assert server.render(messages[:count], **asked) == trained.render([system, *messages[:count]], **asked)
                own = [{"role": "system", "content": "Mine."}, *messages[:count]]
                assert server.render(own, **asked) == trained.render(own, **asked)


def test_no_system_prompt_is_an_empty_turn_where_the_template_would_add_its_own(tmp_path: Path) -> None:
    found = find_texts(
        exported(folder_with(tmp_path / "source", {}, chat_template=text_of("qwen2_5")), system_prompt="")
    )
    assert found is not None
    text = ChatTemplate(found.texts, "server").render([{"role": "user", "content": "u"}])
    assert text == "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nu<|im_end|>\n"


def test_no_system_prompt_changes_nothing_where_the_template_adds_none(tmp_path: Path) -> None:
    target = exported(folder_with(tmp_path / "source", {}, chat_template=text_of("qwen3")), system_prompt="")
    assert (target / "chat_template.jinja").read_text() == text_of("qwen3")


@pytest.mark.parametrize("text", ["\n\n x {{ messages[0].content }}\n", "  {% if true %}y{% endif %}", "", "\r\nz"])
def test_the_line_before_a_template_leaves_its_own_space_alone(text: str) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    wanted = ChatTemplate({"default": text}, "own").render(messages)
    assert ChatTemplate({"default": with_system_prompt(text, "s")}, "changed").render(messages[1:]) == wanted


def test_every_named_template_gets_the_system_prompt(tmp_path: Path) -> None:
    entry = [{"name": name, "template": f"{name}:{SYSTEM_FIRST}"} for name in ("default", "tool_use")]
    found = find_texts(exported(folder_with(tmp_path / "source", {"chat_template": entry}), system_prompt="S"))
    assert found is not None
    server = ChatTemplate(found.texts, "server")
    assert server.render([{"role": "user", "content": "u"}]) == "default:[system|S][user|u]"
    assert server.render([{"role": "user", "content": "u"}], tools=[{}]) == "tool_use:[system|S][user|u]"


def test_a_template_without_system_turns_refuses_a_system_prompt(tmp_path: Path) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    source = folder_with(tmp_path / "source", {}, chat_template=refuses)
    with pytest.raises(ModelError, match=r"data\.system_prompt: .*no system"):
        exported(source, system_prompt="S")


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_that_is_not_text_is_refused(name: str, tmp_path: Path) -> None:
    source = folder_with(tmp_path / "source", {})
    target = tmp_path / "exported"
    target.mkdir()
    (source / name).write_bytes(b"\xff\xfe{")
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        write_template(source, target, "auto", None)
    with pytest.raises(ModelError, match=r"no\.jinja: cannot be read"):
        write_template(source, target, str(tmp_path / "no.jinja"), None)


@pytest.mark.train
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_5_think"])
def test_transformers_reads_the_same_default_system_prompt(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    text, chat = text_of(name), [{"role": "user", "content": "u"}]
    ours, _ = render_jinja_template([chat], chat_template=with_system_prompt(text, HOSTILE))
    theirs, _ = render_jinja_template([[{"role": "system", "content": HOSTILE}, *chat]], chat_template=text)
    assert ours == theirs


def test_a_broken_template_is_named_by_the_export(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "source", {}, chat_template="\n{{ nowhere.at.all }}")
    with pytest.raises(ModelError, match=r"source:2: the chat template refuses: 'nowhere' is undefined"):
        exported(source)
    # Neither is the system prompt to blame that a job adds.
    with pytest.raises(ModelError, match=r"^data\.template: .*source:2: the chat template refuses: 'nowhere' is undef"):
        write_template(source, tmp_path / "exported", "auto", "S")
