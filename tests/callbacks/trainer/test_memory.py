"""The forecast of a larger micro-batch's memory, on a device whose memory is known."""

import pytest
import torch

from lightning_bsscale.callbacks.trainer.memory import HEADROOM, MemoryForecast, MemoryUse, read_memory


class Device:
    """Holds `fixed` bytes and `each` for a row of the largest micro-batch so far."""

    def __init__(self, fixed, each, total, retries=0):
        self.fixed, self.each, self.total, self.retries, self.rows = fixed, each, total, retries, 0

    def read(self):
        return MemoryUse(self.fixed + self.each * self.rows, self.total, self.retries)


def largest(device, forecast):
    """The size at which doubling ends."""
    rows = 8
    while True:
        device.rows = max(device.rows, rows)
        assert device.read().peak <= HEADROOM * device.total
        if not forecast.has_room(2 * rows, computed=rows):
            return rows
        rows *= 2


@pytest.mark.parametrize(("fixed", "each"), [(0, 10), (1000, 10), (5000, 3), (7000, 1)])
def test_doubling_ends_at_the_last_size_that_fits(fixed, each):
    device = Device(fixed, each, 10_000)
    found = largest(device, MemoryForecast(device.read))
    fits = max(rows for rows in (8 << k for k in range(12)) if fixed + each * rows <= HEADROOM * 10_000)
    # With one size known, all of the memory is taken to be the micro-batch's.
    assert found == (8 if 2 * (fixed + 8 * each) > HEADROOM * 10_000 else fits)


def test_a_peak_belongs_to_the_first_size_that_had_it():
    device = Device(1000, 10, 10_000)
    forecast = MemoryForecast(device.read)
    for device.rows in (8, 16, 32):
        assert forecast.has_room(2 * device.rows, computed=device.rows)
    # The peak is that of 32 now; the sixteenth row took 10 all the same.
    assert forecast.has_room(800, computed=16)
    assert not forecast.has_room(801, computed=16)


def test_an_allocator_that_had_to_try_again_ends_it():
    device = Device(0, 1, 10_000)
    forecast = MemoryForecast(device.read)
    device.rows = 8
    assert forecast.has_room(16, computed=8)
    device.retries = 1
    assert not forecast.has_room(16, computed=8)


def test_where_nobody_counts_memory_there_is_room():
    assert read_memory(torch.device("cpu")) is None
    assert MemoryForecast(lambda: None).has_room(10**6, computed=8)


@pytest.mark.gpu
def test_a_real_device_is_read():
    device = torch.device("cuda")
    held = torch.ones(2**20, device=device)
    use = read_memory(device)
    assert held.nbytes <= use.peak <= use.total
