"""Read and write .gz and .zst files, chosen by their suffix, as plain bytes; damage is reported as damage."""

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
# Raised by reading a damaged or truncated file.
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)
# Compressed bytes read at a time: a block of 4 bytes can expand to 128 KiB.
_PIECE = 1 << 10
# Text compresses to between a third and a tenth. A file that expands far more, beyond a harmless size, is a trap, or
# one line repeated.
_GROWTH, _HARMLESS = 200, 4 << 20


def open_plain(path: Path) -> IO[bytes]:
    """Open ``path`` for reading, decompressed if its suffix says that it is compressed."""
    if path.suffix in GZIP:
        return cast("IO[bytes]", _Limited(path, cast("IO[bytes]", gzip.open(path, "rb"))))
    if path.suffix in ZSTD:
        return cast("IO[bytes]", _Limited(path, io.BufferedReader(_ZstdFile(path), 1 << 20)))
    return path.open("rb")


class _Limited(io.BufferedIOBase):
    """A decompressed stream that raises DataError if a small file turns out to be huge."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path, self._stream, self._size, self._read = path, stream, path.stat().st_size, 0

    def read(self, size: int | None = -1) -> bytes:
        block = self._stream.read(-1 if size is None else size)
        self._read += len(block)
        if self._read > _HARMLESS and self._read > _GROWTH * self._size:
            raise DataError(f"{self._path}: expands to more than {_GROWTH} times its size; "
                            "if that is right, decompress it and give the plain file")  # fmt: skip
        return block

    def close(self) -> None:
        self._stream.close()
        super().close()


@contextlib.contextmanager
def packed_into(raw: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    """Yield a stream that compresses into ``raw`` by ``suffix``; equal input gives equal output."""
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
    """Return the module that reads and writes zstd.

    Raises:
        EnvironmentFault: there is none; the message names ``what`` needs it.
    """
    for name in ("compression.zstd", "zstandard"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise EnvironmentFault(f"{what}: .zst needs Python 3.14 or 'pip install zstandard'; or use .gz or a plain file")


class _ZstdFile(io.RawIOBase):
    """All frames of a .zst file. zstandard's own reader accepts a file that ends inside a frame as complete."""

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
        """Decompress one more piece; False at the end of the file."""
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
