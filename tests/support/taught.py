"""A model that was taught one conversation, in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

QUESTION, ANSWER, SECOND = "你好", "你好！我是小助手 😀。\nHow can I help?", "再见"
REPLY = "再见！"
CONVERSATION = {
    "conversations": [
        {"from": "user", "value": QUESTION},
        {"from": "assistant", "value": ANSWER},
        {"from": "user", "value": SECOND},
        {"from": "assistant", "value": REPLY},
    ]
}


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: train.yaml, the data, and model/ trained on one conversation until it knows it by heart."""
    import torch
    import yaml
    from transformers import AutoModelForCausalLM

    from qwen_job.data.encode import ChatTokenizer, encode_conversation
    from qwen_job.data.formats import parse_record
    from qwen_job.data.sample import sample_texts
    from qwen_job.models import ensure_model
    from qwen_job.run.sections import ModelSpec

    run = tmp_path_factory.mktemp("taught")
    (run / "data.json").write_text(json.dumps([CONVERSATION], ensure_ascii=False))
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "vocab_size": 512, "max_position_embeddings": 256, "tie_word_embeddings": False}
    kind = {"name": "tiny", "architecture": "Qwen2ForCausalLM", "model_type": "qwen2", "source": "random"}
    (run / "tiny.yaml").write_text(yaml.safe_dump({**kind, **shape, **more, "initializer_range": 0.05}))
    section = {"name": str(run / "tiny.yaml"), "source": "random", "revision": None, "cache_dir": str(run / "cache")}
    settings = {
        "name": "taught",
        "model": section,
        "data": {"train": [{"path": str(run / "data.json"), "weight": 1.0}]},
    }
    (run / "train.yaml").write_text(yaml.safe_dump(settings))
    start = ensure_model(ModelSpec.read(section), output_dir=run, texts=lambda: sample_texts([run / "data.json"]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads for so small a model only wait for each other
    model = AutoModelForCausalLM.from_pretrained(start).train()
    tokenizer = ChatTokenizer.load(start)
    sample = encode_conversation(parse_record(CONVERSATION), tokenizer, system_prompt="You are a helpful assistant.")
    ids, labels = torch.tensor([sample.input_ids]), torch.tensor([sample.labels])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    assert loss.item() < 0.05
    model.save_pretrained(run / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (run / "model" / name).write_bytes((start / name).read_bytes())
    return run
