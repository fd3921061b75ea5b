"""safetensors files as bytes: ours read by the library, the library's read by us, damage named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from qwen_job.errors import ModelError
from qwen_job.models.tensors import NewTensor, read_folder, read_header, write_tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    arrays = {
        "b": numpy.arange(12, dtype="<f4").reshape(4, 3),
        "a": numpy.ones(5, "<f2"),
        "empty": numpy.zeros((0, 3), "<f4"),
    }
    save_file(arrays, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_rows_are_slices_of_the_file(path: Path) -> None:
    middle = read_header(path)["b"].rows(1, 3)
    assert middle.shape == (2, 3)
    assert numpy.frombuffer(b"".join(middle.read()), "<f4").tolist() == [3, 4, 5, 6, 7, 8]


def test_the_library_reads_what_we_write(path: Path, tmp_path: Path) -> None:
    copies = [NewTensor(t.name, t.dtype, t.shape, t.read()) for t in read_header(path).values()]
    write_tensors(tmp_path / "copy.safetensors", copies)
    original, copy = load_file(path), load_file(tmp_path / "copy.safetensors")
    assert original.keys() == copy.keys()
    assert all(numpy.array_equal(original[name], copy[name]) for name in original)


def test_a_promise_of_bytes_is_held(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="4 bytes were written instead of 8"):
        write_tensors(tmp_path / "x", [NewTensor("w", "F32", (2,), [bytes(4)])])


def _cut(data: bytes) -> bytes:
    return data[:-4]


def _overlap(data: bytes) -> bytes:
    return data.replace(b'"data_offsets":[0,48]', b'"data_offsets":[8,48]')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "bytes long where its header says"),
        (_overlap, "40 bytes where"),
        (lambda _: b"", "is not a safetensors file"),
        (lambda data: b"\xff" * 8 + data[8:], "is not a safetensors file"),
        (lambda data: data[:8] + b"{" * (len(data) - 8), "no safetensors header"),
        (lambda data: data.replace(b'"F32"', b'"F99"'), "header entry is broken"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1", "git-lfs pointer"),
    ],
)
def test_damage_is_named(path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=message):
        read_header(path)


def test_two_shards_with_the_same_tensor_are_refused(path: Path) -> None:
    path.rename(path.with_name("model-1.safetensors")).with_name("model-2.safetensors").write_bytes(
        path.with_name("model-1.safetensors").read_bytes()
    )
    with pytest.raises(ModelError, match=r"is also in model-1\.safetensors"):
        read_folder(path.parent)


def test_copying_a_large_tensor_takes_little_memory(tmp_path: Path) -> None:
    size = 1 << 28
    header = f'{{"w":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}}}'.encode()
    big = tmp_path / "big.safetensors"
    big.write_bytes(len(header).to_bytes(8, "little") + header)
    with big.open("r+b") as file:
        file.truncate(8 + len(header) + size)
    code = (
        "import sys; from pathlib import Path; from qwen_job.models.tensors import *\n"
        "t = read_header(Path(sys.argv[1]))['w']\n"
        "write_tensors(Path(sys.argv[2]), [NewTensor('w', t.dtype, t.shape, t.read())])\n"
        # getrusage would tell the peak of the process that forked, if that was larger.
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, big, tmp_path / "copy"], capture_output=True, text=True, check=True, timeout=60
    )
    assert (tmp_path / "copy").stat().st_size > size
    assert int(run.stdout) < 100 * 1024  # KiB, for 256 MiB of weights
