"""Tests of uploads to a device: the values arrive even if the host's copy changes right afterwards."""

from __future__ import annotations

import pytest
import torch

from atari_dqn.replay.staging import Staging

CPU = torch.device("cpu")


def test_on_a_cpu_nothing_is_copied_without_need() -> None:
    staging, values = Staging(8, (2,), torch.int64, CPU), torch.arange(6).view(3, 2)
    assert staging.upload(values).data_ptr() == values.data_ptr()
    target = torch.zeros((3, 2), dtype=torch.int64)
    assert staging.upload(values, target) is target
    assert torch.equal(target, values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_each_upload_complete_while_the_host_keeps_writing() -> None:
    staging = Staging(2**16, (), torch.int64, torch.device("cuda"))
    busy, host, arrived = torch.randn(4096, 4096, device="cuda"), torch.empty(2**16, dtype=torch.int64), []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(20):
            busy = busy @ busy  # so that the copy has to queue
            arrived.append(staging.upload(host.fill_(number)))
            host.fill_(-1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [tensor.unique().tolist() for tensor in arrived] == [[number] for number in range(20)]
