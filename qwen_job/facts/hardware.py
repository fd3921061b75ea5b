"""GPUs: memory, peak speed and links, from the files in facts/gpus or from the user's own numbers.

Nothing is guessed: an unknown GPU is an error that suggests near names, and a figure that a file omits is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen_job.errors import JobError
from qwen_job.facts import fact
from qwen_job.facts.lookup import find, read_facts


@dataclass(frozen=True)
class Gpu:
    """One kind of accelerator. None and a missing peak mean "not known", never zero.

    Units: bytes, dense TFLOP/s by precision, and 10^9 bytes per second. ``nvlink_gbs`` and ``pcie_gbs`` count
    both directions together, as data sheets do. ``memory_bytes`` is what CUDA reports, not the label on the
    box.
    """

    name: str
    memory_bytes: int | None
    compute_capability: float
    peak_tflops: dict[str, float]
    memory_bandwidth_gbs: float | None
    nvlink_gbs: float | None
    pcie_gbs: float | None
    aliases: tuple[str, ...] = ()
    source: str = ""

    @property
    def is_cpu(self) -> bool:
        """Whether this is a processor, not an accelerator."""
        return self.name.upper() == "CPU"

    def of_cores(self, cores: int) -> Gpu:
        """Return a processor of ``cores`` cores; the figures of a CPU file are for one core."""
        peaks = {precision: cores * peak for precision, peak in self.peak_tflops.items()}
        return replace(self, peak_tflops=peaks)


def gpu_names() -> list[str]:
    """Return the names of the GPUs that qwen_job/facts/gpus describes, sorted."""
    return sorted(str(read_facts(path)["name"]) for path in fact("gpus").glob("*.yaml"))


def other_sizes(name: str, chosen: Gpu) -> list[str]:
    """Return the known GPUs of the family ``name`` besides ``chosen``: A100-40G for A100; only file names are read."""
    family = name.strip().lower()
    if family == chosen.name.lower():
        return []
    names = {path.stem.upper() for path in fact("gpus").glob("*.yaml") if path.stem.startswith(f"{family}-")}
    return sorted(names - {chosen.name.upper()})


def load_gpu(name: str, search: Sequence[str | Path] = ()) -> Gpu:
    """Return the GPU called ``name`` (or by an alias, in any case) from ``search`` folders or qwen_job/facts/gpus.

    Raises:
        UnknownName: no file has the name; suggests near ones.
    """
    folders = [Path(folder) for folder in search] + [fact("gpus")]
    path = find(name, folders, "GPU")
    return gpu_from_mapping(read_facts(path), str(path))


def gpu_from_mapping(values: Mapping[str, Any], where: str) -> Gpu:
    """Build a Gpu from a file or a user's numbers; ``where`` names them in errors.

    Raises:
        JobError: a value is missing or is not a number above 0.
    """
    try:
        return Gpu(
            name=str(values["name"]),
            memory_bytes=_number(values.get("memory_bytes"), int),
            compute_capability=float(values["compute_capability"]),
            peak_tflops={str(key): float(value) for key, value in (values.get("peak_tflops") or {}).items()},
            memory_bandwidth_gbs=_number(values.get("memory_bandwidth_gbs"), float),
            nvlink_gbs=_number(values.get("nvlink_gbs"), float),
            pcie_gbs=_number(values.get("pcie_gbs"), float),
            aliases=tuple(str(alias) for alias in values.get("aliases") or ()),
            source=str(values.get("source", "")),
        )
    except KeyError as error:
        raise JobError(f"{where}: {error.args[0]}: missing; a GPU needs name and compute_capability") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise JobError(f"{where}: not the numbers of a GPU ({error})") from error


def _number(value: Any, kind: type) -> Any:
    if value is None:
        return None
    number = kind(value)
    if number <= 0:
        raise ValueError(f"{value} is not above 0")
    return number
