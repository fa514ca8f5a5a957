"""Rankings in this process may set its threads."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads_of_this_process():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
