"""The pages that ``qwen-job docs`` prints, in one compressed file of the wheel: a third of their size on the disk."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The oldest that a zip file can hold: the same bytes every time.
_DATE = (1980, 1, 1, 0, 0, 0)


class PagesHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds ``_resources/pages.zip`` to a wheel; hatchling calls it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the file, except for an editable installation, which reads the repository."""
        if version == "editable":
            return
        root = Path(self.root)
        with tempfile.NamedTemporaryFile(prefix="qwen-job-pages-", suffix=".zip", delete=False) as file:
            self.packed = Path(file.name)
        with zipfile.ZipFile(self.packed, "w") as packed:
            for path in [root / "AGENTS.md", root / "CHANGELOG.md", *sorted((root / "docs").glob("*.md"))]:
                entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), _DATE)
                packed.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
        # A temporary file is for its owner only.
        self.packed.chmod(0o644)
        build_data["force_include"][str(self.packed)] = "qwen_job/_resources/pages.zip"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove it."""
        if version != "editable":
            self.packed.unlink()
