"""One rule for a model's name: job.yaml, the reference's flags, ``model fetch`` and the node agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.errors import JobError, ModelError, UsageError
from qwen_job.facts.model_names import clean_name, resolve_source
from qwen_job.job.load import load_job
from qwen_job.run.sections import ModelSpec
from qwen_job.train.flag_sections import Hardware
from qwen_job.train.flags import config_from_flags

GOOD = [
    "Qwen/Qwen-1_8B-Chat",
    "Qwen/Qwen-1_8B-Chat/",
    "Qwen/Qwen-1_8B-Chat//",
    "Qwen//Qwen-1_8B-Chat",
    " Qwen/Qwen-1_8B-Chat ",
]
BAD = ["Qwen/", "Qwen/a/b", "Qwen/..", "https://huggingface.co/Qwen/Qwen-1_8B-Chat", "Qwen/a b"]
ID = "Qwen/Qwen-1_8B-Chat"


def from_job(name: str, folder: Path) -> str:
    text = f"name: a\nmodel: {name!r}\ndata: /d.json\noutput: out\ncluster: {{gpu: H100, nodes: 1, gpus_per_node: 1}}\n"
    (folder / "job.yaml").write_text(text)
    return load_job([str(folder / "job.yaml")]).model.name


def from_flags(name: str) -> object:
    words = ["--model_name_or_path", name, "--data_path", "d.json", "--output_dir", "out"]
    return config_from_flags(words, Hardware("cpu", None, False), 1)[0].model.name


def from_train_yaml(name: str) -> str:
    section = {"name": name, "source": "modelscope", "revision": None, "cache_dir": None}
    return ModelSpec.read(section).name


@pytest.mark.parametrize("name", GOOD)
def test_every_spelling_is_one_name_everywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {clean_name(name, "auto"), from_job(name, tmp_path), from_flags(name), from_train_yaml(name)} == {ID}


@pytest.mark.parametrize("name", BAD)
def test_what_the_node_would_refuse_is_refused_before_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match=r"job\.yaml:2:1: model\.name: .*(owner/name|is an address)"):
        from_job(name, tmp_path)
    with pytest.raises(UsageError, match="--model_name_or_path: "):
        from_flags(name)
    with pytest.raises(ModelError, match=r"model\.name: "):
        from_train_yaml(name)


@pytest.mark.parametrize("host", ["https://www.modelscope.cn/models/", "modelscope.cn/models/", "https://hf.co/"])
def test_an_address_is_answered_with_its_id(host: str) -> None:
    with pytest.raises(ValueError, match=f"write '{ID}'"):
        clean_name(f"{host}{ID}/summary", "modelscope")


@pytest.mark.parametrize("name", ["./model/", "/models/a/", "../a", "~/a", ".", ".."])
def test_a_path_stays_a_folder(name: str) -> None:
    assert (resolve_source(name, "auto"), clean_name(name, "auto")) == ("local", name)
