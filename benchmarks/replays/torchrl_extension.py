"""torchrl's compiled sum trees, for a torch version that its wheel was not built for.

The wheel's extension loads with one version of torch only. The wheel also contains the sources, so they are compiled
here, as its authors advise, and provided under the name torchrl imports. This takes half a minute, once.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path


def provide() -> None:
    """Make `torchrl._torchrl` importable. A C++ compiler is needed only if the wheel's own extension does not load."""
    import torch  # loads the libraries the extension links against

    spec = importlib.util.find_spec("torchrl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    home = Path(spec.submodule_search_locations[0])
    with contextlib.suppress(ImportError):
        for wheels_own in home.glob("_torchrl*.so"):
            module = importlib.util.spec_from_file_location("_torchrl", wheels_own)
            assert module is not None
            importlib.util.module_from_spec(module)
            return
    from torch.utils import cpp_extension

    place = Path(sys.prefix) / f"torchrl-trees-torch-{torch.__version__}"
    place.mkdir(exist_ok=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for ninja
    sources = [str(home / "csrc" / name) for name in ("pybind.cpp", "utils.cpp")]
    sys.modules["torchrl._torchrl"] = cpp_extension.load(
        "_torchrl", sources, extra_cflags=["-O3"], build_directory=str(place)
    )
