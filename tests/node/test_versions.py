import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from qwen_job.node.versions import stack_versions, torch_cuda


def fake_torch(folder: Path, cuda: str) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "torch" / "version.py").write_text(f"__version__ = '9'\ncuda: Optional[str] = {cuda}\nhip = None\n")


@pytest.mark.parametrize(("line", "wanted"), [("'13.0'", "13.0"), ("None", None)])
def test_reads_the_cuda_of_torch_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, wanted: str | None
) -> None:
    fake_torch(tmp_path, line)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert torch_cuda() == wanted


@pytest.mark.train
def test_tells_what_is_installed() -> None:
    assert stack_versions()["torch"] == version("torch")
    assert stack_versions()["DeepSpeed"] == version("deepspeed")


def test_imports_nothing_heavy() -> None:
    code = "import sys; from qwen_job.node.versions import stack_versions as v; v(); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
