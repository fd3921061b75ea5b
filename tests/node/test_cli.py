import json

import pytest
from click.testing import CliRunner

from qwen_job.cli import cli
from qwen_job.errors import EnvironmentFault


def test_quick_check_as_json() -> None:
    result = CliRunner().invoke(cli, ["node", "check", "--quick", "--device", "cpu", "--json"])
    assert result.exit_code == 0
    assert [finding["check"] for finding in json.loads(result.output)["findings"]] == ["cache", "shared memory"]


def test_a_fault_ends_with_the_environment_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_JOB_CACHE", "/dev/null/cache")
    result = CliRunner().invoke(cli, ["node", "check", "--quick", "--device", "cpu"])
    assert isinstance(result.exception, EnvironmentFault)
    assert result.output.startswith("fault    cache")


def test_a_fabric_that_there_is_not_is_refused() -> None:
    result = CliRunner().invoke(cli, ["node", "check", "--quick", "--fabric", "infinband"])
    assert result.exit_code == 2 and "'infinband' is not one of 'auto', 'none', 'infiniband'" in result.output
