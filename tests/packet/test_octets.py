"""Integers in byte arrays, against int.from_bytes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.packet import octets

KERNELS = [(16, "big"), (32, "big"), (64, "big"), (16, "little"), (32, "little"), (64, "little")]


@pytest.mark.parametrize(("bits", "order"), KERNELS)
@given(data=st.data(), offset=st.integers(0, 9))
def test_what_is_read_and_written_is_what_python_says_and_nothing_around_it_changes(bits: int, order: Any, data: Any, offset: int) -> None:
    signed = bits == 64
    low, high = (-(1 << 63), (1 << 63) - 1) if signed else (0, (1 << bits) - 1)
    value, size, name = data.draw(st.integers(low, high)), bits // 8, f"{order[0]}e{bits}"
    buffer = np.full(30, 0xEE, np.uint8)
    getattr(octets, f"put_{name}")(buffer, offset, np.int64(value))
    assert buffer.tobytes() == b"\xee" * offset + value.to_bytes(size, order, signed=signed) + b"\xee" * (30 - offset - size)
    assert getattr(octets, name)(buffer, offset) == value


@pytest.mark.parametrize(("bits", "order"), KERNELS[:2] + KERNELS[3:5])
def test_only_the_low_bits_of_a_value_are_written(bits: int, order: str) -> None:
    buffer = np.zeros(8, np.uint8)
    getattr(octets, f"put_{order[0]}e{bits}")(buffer, 0, np.int64(-2))
    assert getattr(octets, f"{order[0]}e{bits}")(buffer, 0) == (1 << bits) - 2
