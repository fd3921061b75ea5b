"""Where the files that ship beside the code lie: configs/, charts/ and slurm/.

In a checkout they stand next to the package; in an installed wheel they are inside it. Everything else asks here.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(*parts: str) -> Path:
    """Return the path of a shipped file or folder, e.g. ``fact("gpus")``.

    The path is returned whether or not it exists; an installed wheel's own copy wins over a neighbouring folder.
    """
    installed = _PACKAGE / "_resources"
    root = installed if installed.is_dir() else _PACKAGE.parent
    return root.joinpath(*parts)
