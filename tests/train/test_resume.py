"""The ranks share the reading of a checkpoint, and agree on the newest one that is whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwen_job.run.manifest import describe, write_manifest

pytestmark = pytest.mark.train

_SHARD = "global_step{step}/zero_pp_rank_1_mp_rank_00_optim_states.pt"


def checkpoint(home: Path, step: int) -> Path:
    """Write a complete checkpoint of two ranks."""
    folder = home / f"step-{step}"
    first, second = (f"global_step{step}/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1))
    names = ["latest", "rng_state_0.pth", "rng_state_1.pth", first, second]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of {step}")
    write_manifest(folder, step=step, world_size=2, zero_stage=2, files={n: describe(folder / n) for n in names})
    return folder


def agree(home: Path, ranks: int) -> list[dict[str, str]]:
    """Return what each rank refuses; a thread stands for a rank, the store is torch's own."""
    from torch.distributed import HashStore

    from qwen_job.train.rendezvous import Place
    from qwen_job.train.resume import refuse_corrupt

    store = HashStore()
    with ThreadPoolExecutor(ranks) as pool:
        waiting = [
            pool.submit(refuse_corrupt, home, Place(rank, ranks, rank, "localhost", 1), store) for rank in range(ranks)
        ]
        return [each.result(30) for each in waiting]


@pytest.mark.parametrize(("ranks", "reader"), [(1, 0), (2, 1), (4, 1)])
def test_the_rank_that_owns_a_corrupt_shard_finds_it_and_the_older_checkpoint_is_taken(
    tmp_path: Path, ranks: int, reader: int
) -> None:
    from qwen_job.run.manifest import newest

    older = checkpoint(tmp_path, 4)
    for step in (8, 12):
        shard = checkpoint(tmp_path, step) / _SHARD.format(step=step)
        content = bytearray(shard.read_bytes())
        content[0] ^= 1
        shard.write_bytes(content)
    reasons = {
        f"step-{step}": f"{_SHARD.format(step=step)} does not match the hash in its manifest, as rank {reader} read it"
        for step in (8, 12)
    }
    assert agree(tmp_path, ranks) == [reasons] * ranks
    found, passed_over = newest(tmp_path, hashes=False, refused=reasons)
    assert found is not None and found.path == older
    assert [line.split()[0] for line in passed_over] == ["step-12", "step-8"]


def test_what_is_whole_is_refused_by_nobody(tmp_path: Path) -> None:
    assert agree(tmp_path / "nothing", 2) == [{}, {}]
    checkpoint(tmp_path, 4)
    assert agree(tmp_path, 2) == [{}, {}]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_file_falls_to_one_rank(tmp_path: Path, ranks: int) -> None:
    from qwen_job.run.manifest import wrong_hash

    folder = checkpoint(tmp_path, 4)
    for name in [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]:
        whole = name.read_bytes()
        name.write_bytes(whole[::-1])
        found = [wrong_hash(folder, rank, ranks) for rank in range(ranks)]
        assert sum(reason is not None for reason in found) == 1
        name.write_bytes(whole)
