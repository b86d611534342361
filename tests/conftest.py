"""What the tests share by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("any_machine", deadline=None)  # no test judges speed
hypothesis.settings.load_profile("any_machine")


@pytest.fixture(scope="session", autouse=True)
def _stubs_can_be_imported() -> Iterator[None]:
    """By programs that tests start elsewhere, and by their workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        yield


@pytest.fixture(autouse=True)
def _the_same_whatever_ran_before() -> None:
    """Weights of networks that are made here and now (a training draws its own from its seed); what a training in this
    process may have left in torch; and threads: small tensors are quicker on one, and other tests have the other cores.
    """
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)
    torch.backends.cudnn.allow_tf32 = True
    torch.set_num_threads(1)
