"""Losses that a model returns beside its logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch.nn.functional as F
from rule_harness import Probe, check
from torch import Tensor

from tlfx.propagate.values import Role

SIZE = (4, 3, 4)

ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "mse_loss": F.mse_loss,
    "l1_loss": F.l1_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": F.huber_loss,
    "binary_cross_entropy_with_logits": lambda x, y, **o: F.binary_cross_entropy_with_logits(x, y.sigmoid(), **o),
    "kl_div": lambda x, y, **o: F.kl_div(x.log_softmax(1), y.softmax(1), **o),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_loss_for_each_element_has_its_label(name: str) -> None:
    check(lambda x: ELEMENTWISE[name](x, x.tanh(), reduction="none"), lambda y, x: y, SIZE)


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.filterwarnings("ignore:reduction")
def test_one_loss_for_the_batch_has_none(name: str) -> None:
    assert Probe(lambda x: (x, ELEMENTWISE[name](x, x.tanh())), SIZE).roles == [Role.CONTENT, Role.WEIGHT]


def test_a_class_loss_for_each_position() -> None:
    check(lambda x: F.cross_entropy(x, x.argmax(1), reduction="none"), lambda y, x: y[:, 0], SIZE)
    check(lambda x: F.nll_loss(x.log_softmax(1), x.argmax(1), reduction="none"), lambda y, x: y[:, 0], SIZE)


def test_one_class_loss_has_no_label() -> None:
    assert Probe(lambda x: (x, F.cross_entropy(x, x.argmax(1))), SIZE).roles == [Role.CONTENT, Role.WEIGHT]
