import pytest
import torch

from mp_plugin.numerics.host_copy import HostCopy


def test_what_is_on_the_host_is_not_copied() -> None:
    tensor = torch.arange(3.0)
    assert HostCopy(tensor).read().data_ptr() == tensor.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nobody_waits_for_a_copy_until_it_is_read() -> None:
    tensor = torch.arange(3.0, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        copy = HostCopy(tensor * 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.device("cuda"):  # a default device of the user's is not that of the host
        assert copy.read().tolist() == [0.0, 2.0, 4.0]
        assert HostCopy(tensor).read().is_pinned()
