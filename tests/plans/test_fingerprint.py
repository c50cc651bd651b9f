"""A weight's fingerprint changes with its numbers, and with nothing else."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tenfold.plans.plan import fingerprint


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_one_entry_an_order_and_a_sign_show(seed, n):
    torch.manual_seed(seed)
    weight = torch.randn(n, 3)
    changed = [weight, weight.flip(1), -weight, *(weight.clone() for _ in range(n))]
    for i in range(n):
        changed[3 + i][i, 1] = torch.nextafter(changed[3 + i][i, 1], torch.tensor(9.0))
    assert len({fingerprint(w) for w in changed}) == n + 3


def test_a_wider_dtype_and_another_layout_do_not_show():
    weight = torch.randn(6, 5, 3, 3).half()
    same = [weight.float(), weight.double(), weight.to(memory_format=torch.channels_last), weight.mT.clone().mT]
    assert {fingerprint(w) for w in same} == {fingerprint(weight)}


def test_large_weights_are_read_in_parts_and_each_part_counts():
    weight = torch.ones(3, 1 << 20)
    prints = {fingerprint(weight)}
    for row in range(3):
        changed = weight.clone()
        changed[row, 5] = 2
        prints.add(fingerprint(changed))
    assert len(prints) == 4
