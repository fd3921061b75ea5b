"""Runs at every start of Python in the image (a .pth file imports it): one variable moves every cache.

Only ``QWEN_JOB_CACHE`` has to be writable; a variable that the user sets himself wins.
"""

import os

_CACHES = {
    "HF_HOME": "huggingface",
    "MODELSCOPE_CACHE": "modelscope",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TORCH_HOME": "torch",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "xdg",
}

_root = os.environ.setdefault("QWEN_JOB_CACHE", "/tmp/qwen-job")
for _name, _leaf in _CACHES.items():
    os.environ.setdefault(_name, os.path.join(_root, _leaf))  # noqa: PTH118 - pathlib would slow every start
