"""The README as a package index shows it: links within the repository become links to it, at this version."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|#)([^)\s]+)\)")


class ReadmeHook(MetadataHookInterface):
    """Sets ``readme`` from README.md; hatchling calls it when it builds a wheel or an sdist."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the readme to the metadata."""
        text = Path(self.root, "README.md").read_text("utf-8")
        repository = metadata["urls"]["Repository"]
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, repository, metadata["version"])}


def absolute(text: str, repository: str, version: str) -> str:
    """Return the page with the full address of every file that it links or shows."""

    def full(found: re.Match[str]) -> str:
        image, label, path = found.groups()
        # A badge in a link: [![label](image)](page).
        label = _LINK.sub(full, label)
        return f"{image}[{label}]({repository}/{'raw' if image else 'blob'}/v{version}/{path})"

    return _LINK.sub(full, text)
