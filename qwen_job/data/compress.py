"""Compressed files by their suffix: .gz and .zst, read and written as plain bytes, with damage told as such."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from qwen_job.errors import DataError, EnvironmentFault

GZIP = (".gz",)
ZSTD = (".zst", ".zstd")
# What reading a damaged or cut file raises.
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)
# Of the compressed file, read at once: a block of 4 bytes can stand for 128 KiB.
_PIECE = 1 << 10
# Text packs to a third or a tenth; what grows more than this, beyond a size that costs nothing, is a trap or one line
# over and over.
_GROWTH, _HARMLESS = 200, 4 << 20


def open_plain(path: Path) -> IO[bytes]:
    """Open ``path`` for reading, unpacked if its suffix says that it is packed."""
    if path.suffix in GZIP:
        return cast("IO[bytes]", _Limited(path, cast("IO[bytes]", gzip.open(path, "rb"))))
    if path.suffix in ZSTD:
        return cast("IO[bytes]", _Limited(path, io.BufferedReader(_ZstdFile(path), 1 << 20)))
    return path.open("rb")


class _Limited(io.BufferedIOBase):
    """An unpacked stream that ends with a DataError when a small file turns out to be a huge one."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path, self._stream, self._size, self._read = path, stream, path.stat().st_size, 0

    def read(self, size: int | None = -1) -> bytes:
        block = self._stream.read(-1 if size is None else size)
        self._read += len(block)
        if self._read > _HARMLESS and self._read > _GROWTH * self._size:
            raise DataError(f"{self._path}: grows to more than {_GROWTH} times its size when it is unpacked; "
                            "if that is right, unpack it and give the plain file")  # fmt: skip
        return block

    def close(self) -> None:
        self._stream.close()
        super().close()


@contextlib.contextmanager
def packed_into(raw: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    """Yield a stream that packs into ``raw`` as ``suffix`` asks; the same bytes in give the same bytes out."""
    if suffix in GZIP:
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as stream:  # without a time stamp
            yield cast("IO[bytes]", stream)
    elif suffix in ZSTD:
        module = zstd_module(suffix)
        native = module.__name__ == "compression.zstd"
        with module.open(raw, "wb") if native else module.ZstdCompressor().stream_writer(raw, closefd=False) as stream:
            yield stream
    else:
        yield raw


def zstd_module(what: object) -> Any:
    """Return the module that packs and unpacks zstd; EnvironmentFault, naming ``what`` needs it, if there is none."""
    for name in ("compression.zstd", "zstandard"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise EnvironmentFault(f"{what}: .zst needs Python 3.14 or 'pip install zstandard'; or use .gz or a plain file")


class _ZstdFile(io.RawIOBase):
    """All frames of a .zst file. zstandard's own reader takes a file that ends inside a frame for complete."""

    def __init__(self, path: Path) -> None:
        module = zstd_module(path)
        self._error: type[Exception] = module.ZstdError
        native = module.__name__ == "compression.zstd"
        self._frame = module.ZstdDecompressor if native else lambda: module.ZstdDecompressor().decompressobj()
        self._decoder: Any = None
        self._packed, self._plain = b"", memoryview(b"")
        self._file = path.open("rb")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._plain and self._advance():
            pass
        count = min(len(target), len(self._plain))
        target[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def _advance(self) -> bool:
        """Unpack one more piece; False at the end of the file."""
        self._packed = self._packed or self._file.read(_PIECE)
        if not self._packed:
            if self._decoder:
                raise EOFError("it ends inside a zstd frame")
            return False
        self._decoder = self._decoder or self._frame()
        try:
            self._plain = memoryview(self._decoder.decompress(self._packed))
        except self._error as error:
            raise zlib.error(str(error)) from error
        self._packed = b""
        if self._decoder.eof:
            self._packed, self._decoder = self._decoder.unused_data, None
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
