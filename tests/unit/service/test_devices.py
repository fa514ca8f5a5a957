"""The setting of the device: what torch can use, and how the rest is refused."""

import pytest

from gradalign import GradAlignError
from gradalign_scorer.service.engine import pick_device


@pytest.mark.parametrize("setting", ["auto", "cpu"])
def test_usable(setting):
    assert pick_device(setting).type in ("cpu", "cuda")


@pytest.mark.parametrize("setting", ["warp", "", "cuda:99", "meta", "cpu:x"])
def test_others_are_refused_by_the_name_of_the_setting(setting):
    with pytest.raises(GradAlignError, match=r"GRADALIGN_DEVICE \(--device\)") as caught:
        pick_device(setting)
    assert repr(setting) in str(caught.value)
    assert "cuda:N" in str(caught.value)
