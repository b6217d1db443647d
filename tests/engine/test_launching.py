"""Where no kernel can be built."""

import pytest
import torch

from batchlab.engine import launching
from batchlab.engine.launching import can_launch


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "TRITON", True)
    can_launch.cache_clear()
    with pytest.warns(RuntimeWarning, match="several times slower: "):
        assert not can_launch()
    can_launch.cache_clear()


def test_without_triton_there_is_nothing_to_warn_of(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(launching, "TRITON", False)
    can_launch.cache_clear()
    assert not can_launch()
    assert not recwarn
    can_launch.cache_clear()
