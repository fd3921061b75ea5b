"""What the links of a chain and the tasks of a sweep decide, run in bash with stand-ins for Slurm's programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.script_lab import ScriptLab

SCANCEL = '#!/bin/bash\necho "$*" >> "$LAB/scancel.log"\n'


def array(folder: Path, **sections: Any) -> ScriptLab:
    lab = ScriptLab(folder, **sections)
    (folder / "bin" / "scancel").write_text(SCANCEL)
    (folder / "bin" / "scancel").chmod(0o755)
    lab.env["SLURM_ARRAY_JOB_ID"] = "7"
    return lab


def link(lab: ScriptLab, number: int, code: int, then: str = "", nodes: dict[int, str] | None = None) -> int:
    """Run one link to its end; ``nodes`` are the notes of the nodes."""
    lab.env |= {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_JOB_ID": str(7 + number)}
    notes = [
        f'echo "{text}" > "{lab.run_folder}/launch/exit.7_{number}-{number}.{rank}"'
        for rank, text in (nodes or {}).items()
    ]
    return lab.ends(code, then="\n".join([*notes, then]))


def called_off(lab: ScriptLab) -> bool:
    log = lab.folder / "scancel.log"
    return log.exists() and log.read_text() == "--state=PENDING 7\n"


@pytest.fixture
def chain(tmp_path: Path) -> ScriptLab:
    return array(tmp_path, slurm={"chain": 4})


def test_a_link_hands_over_to_the_next_and_the_last_one_says_so(chain: ScriptLab) -> None:
    assert [link(chain, n, 160, chain.checkpoint(n + 1)) for n in range(3)] == [160, 160, 160]
    assert "the next link resumes from checkpoint 3 (exit code 160)" in chain.said
    assert link(chain, 3, 160, chain.checkpoint(9)) == 160
    assert "the last of 4 links ended at checkpoint 9" in chain.said
    assert not chain.requeued and not called_off(chain)


def test_every_link_has_a_rendezvous_of_its_own(chain: ScriptLab) -> None:
    seen = []
    for number in range(2):
        link(chain, number, 160, chain.checkpoint(number + 1))
        seen.append((chain.folder / "srun.args").read_text().splitlines()[-4:-2])
    assert seen == [["61007", "7_0-0"], ["61008", "7_1-1"]]


def test_links_after_the_end_succeed_at_once(chain: ScriptLab) -> None:
    assert link(chain, 0, 0, chain.finished) == 0
    (chain.folder / "srun.args").unlink()
    assert link(chain, 1, 9) == 0 and not (chain.folder / "srun.args").exists()


@pytest.mark.parametrize(
    ("code", "words"), [(4, "failed with exit code 4"), (205, "not the same folder"), (0, "is missing")]
)
def test_what_another_link_would_meet_again_calls_the_others_off(chain: ScriptLab, code: int, words: str) -> None:
    assert link(chain, 0, code) < 128 and words in chain.said
    assert called_off(chain)


def test_links_without_a_newer_checkpoint_end_the_chain(chain: ScriptLab) -> None:
    assert [link(chain, number, 161) for number in range(3)] == [161, 161, 8]
    assert "gave up: 3 links in a row" in chain.said and called_off(chain)


def test_a_bad_node_is_left_out_of_the_links_that_wait(chain: ScriptLab) -> None:
    assert link(chain, 0, 163, nodes={0: "163 host2"}) == 163
    assert "update JobId=7 ExcNodeList=host2" in (chain.folder / "scontrol.log").read_text()


def test_a_task_of_a_sweep_requeues_itself_only(tmp_path: Path) -> None:
    lab = array(tmp_path, sweep={"train.seed": [1, 2]})
    base = lab.run_folder
    lab.env |= {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "7"}
    (base / "seed=2" / "launch").mkdir(parents=True)
    assert lab.ends(160) == 160
    assert "requeue 7_1" in (tmp_path / "scontrol.log").read_text()
    assert (tmp_path / "srun.args").read_text().splitlines()[-3] == "7_1-0"
    assert (base / "seed=2" / "launch" / "retries.7_1").exists() and not (base / "seed=1").exists()
