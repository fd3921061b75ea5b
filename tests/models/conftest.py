"""A small checkpoint of the first generation and its tokenizer file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .qwen1_checkpoint import write_qwen1


@pytest.fixture(scope="session")
def qwen_tiktoken(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """qwen.tiktoken as the package dashscope ships it: downloaded once, kept in pytest's cache."""
    assert pytestconfig.cache is not None
    folder = Path(pytestconfig.cache.mkdir("qwen-tiktoken"))
    path = folder / "dashscope" / "resources" / "qwen.tiktoken"
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "dashscope==1.25.0"]
        # Two processes of one test run may both come here: each gets its own, and either is put in place whole.
        aside = tmp_path_factory.mktemp("dashscope")
        subprocess.run([*command, "-d", str(aside)], check=True, timeout=300)
        with zipfile.ZipFile(next(aside.glob("dashscope-*.whl"))) as wheel:
            made = wheel.extract("dashscope/resources/qwen.tiktoken", aside)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        shutil.copyfile(made, partial)
        partial.replace(path)
    return path


@pytest.fixture(scope="session")
def qwen1(tmp_path_factory: pytest.TempPathFactory, qwen_tiktoken: Path) -> Path:
    """A random two-layer Qwen-1 checkpoint in two float32 shards, with the real tokenizer."""
    folder = tmp_path_factory.mktemp("hub") / "Qwen-tiny-Chat"
    folder.mkdir()
    write_qwen1(folder, qwen_tiktoken)
    return folder
