"""pydantic, imported without its search for plugins.

On import pydantic loads importlib.metadata (and with it email and zipfile), and on the first model it asks every
installed distribution for plugins: 30 of the 250 ms of processor time that a render took. No plugin has a say in how a
job is read, so its loader is replaced by one that finds none. Should pydantic move the module, nothing is replaced and
only the time is lost.
"""

import sys
import types

_NAME = "pydantic.plugin._loader"

if "pydantic" not in sys.modules and _NAME not in sys.modules:
    _loader = types.ModuleType(_NAME)
    _loader.get_plugins = tuple  # type: ignore[attr-defined]
    sys.modules[_NAME] = _loader
