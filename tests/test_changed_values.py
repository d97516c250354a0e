"""Labels follow parameters and buffers that decide where values go: they may be trained, loaded or written to."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers import plans
from torch import Tensor, nn

import tlfx

N, C = 16, 8
SLOW = pytest.mark.slow
Body = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """A token for each of 4 × 4 pixels; a buffer of indices, one of flags, and a parameter that orders tokens."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Conv2d(3, C, 1), body
        self.register_buffer("places", torch.arange(N))
        self.register_buffer("keep", torch.arange(N) < 8)
        self.order = nn.Parameter(torch.linspace(-1, 1, N))
        self.listed = {"places": torch.arange(N)}

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, self.stem(x).flatten(2).mT)[:, 0]


def label(model: nn.Module, batch: int = 2) -> Tensor:
    """The share of each pixel in the first output, of the first sample: (pixels,)."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, 4, 4)
    zero = torch.zeros(batch, dtype=torch.long)
    rows = []
    for pixel in range(N):
        mask = torch.zeros(batch, 1, 4, 4)
        mask.flatten(1)[:, pixel] = 1
        mixed = tlfx.MixedTarget(first=zero, second=zero + 1, mask=mask, num_classes=2, smoothing=0.0)
        rows.append(model(images, mixed)[1][0, 0])
    return torch.stack(rows)


def by_index(net: Any, t: Tensor) -> Tensor:
    return t[:, net.places]


def by_gather(net: Any, t: Tensor) -> Tensor:
    return t.gather(1, net.places.view(1, -1, 1).expand(len(t), -1, C))


def by_index_select(net: Any, t: Tensor) -> Tensor:
    return t.index_select(1, net.places[:4])


def by_take_along_dim(net: Any, t: Tensor) -> Tensor:
    return torch.take_along_dim(t, net.places[None, :, None], 1)


def by_writing(net: Any, t: Tensor) -> Tensor:
    out = torch.zeros_like(t)
    out[:, net.places] = t.flip(1)
    return out


def by_index_copy(net: Any, t: Tensor) -> Tensor:
    return torch.zeros_like(t).index_copy(1, net.places, t.flip(1))


def by_scatter(net: Any, t: Tensor) -> Tensor:
    return torch.zeros_like(t).scatter(1, net.places.view(1, -1, 1).expand_as(t), t.flip(1))


def by_topk(net: Any, t: Tensor) -> Tensor:
    return t[:, net.order.topk(3)[1]]


def by_argsort(net: Any, t: Tensor) -> Tensor:
    return t[:, net.order.argsort(descending=True)]


def by_where(net: Any, t: Tensor) -> Tensor:
    return torch.where(net.keep[:, None], t, t.flip(1)).roll(-net.shift if hasattr(net, "shift") else 0, 1)


def by_filling(net: Any, t: Tensor) -> Tensor:
    return t.masked_fill(net.keep[:, None], 0.5).mean(1, keepdim=True)


def by_threshold(net: Any, t: Tensor) -> Tensor:
    return t.masked_fill((net.order > 0)[:, None], 0.0).mean(1, keepdim=True)


def by_listed(net: Any, t: Tensor) -> Tensor:
    return t[:, net.listed["places"]]


def by_mask(net: Any, t: Tensor) -> Tensor:
    return t[:, net.keep].mean(1, keepdim=True)


BODIES = [
    by_index, by_gather, by_index_select, by_take_along_dim, by_writing, by_index_copy, by_scatter, by_topk, by_argsort,
    by_where, by_filling, by_threshold, by_listed, by_mask,
]  # fmt: skip


def in_place(net: Any) -> None:
    net.places.copy_(net.places.flip(0))
    net.keep.logical_not_()
    net.listed["places"].copy_(net.listed["places"].flip(0))
    with torch.no_grad():
        net.order.neg_()


def by_data(net: Any) -> None:
    for x in (net.places, net.keep, net.order, net.listed["places"]):
        x.data.copy_(x.data.flip(0))


def replaced(net: Any) -> None:
    net.places, net.keep = net.places.flip(0), net.keep.flip(0)
    net.order = nn.Parameter(net.order.detach().flip(0))
    net.listed["places"] = net.listed["places"].flip(0)


def loaded(net: Any) -> None:
    net.load_state_dict({k: x.flip(0) if x.shape[0] == N else x for k, x in net.state_dict().items()})
    net.listed["places"].copy_(net.listed["places"].flip(0))


CHANGES = (in_place, by_data, replaced, loaded)
MOST = {(b, in_place) for b in (by_index, by_take_along_dim, by_writing, by_argsort, by_where, by_threshold)}
MOST |= {(by_topk, change) for change in CHANGES} | {(by_listed, replaced), (by_mask, replaced)}
"""One body of each kind of operator, and each change once; the others are tested by ``make slow``."""
PAIRS = [
    pytest.param(body, change, id=f"{body.__name__}-{change.__name__}", marks=[] if (body, change) in MOST else SLOW)
    for body in BODIES
    for change in CHANGES
]


@pytest.mark.parametrize(("body", "change"), PAIRS)
def test_labels_follow_values(body: Body, change: Callable[[Any], None]) -> None:
    model = tlfx.align(Net(body))
    before = label(model)
    assert torch.equal(label(model), before)
    change(model)
    fresh = tlfx.align(deepcopy(tlfx.unalign(deepcopy(model))))
    after = label(model)
    torch.testing.assert_close(after, label(fresh))
    assert not torch.equal(after, before)
    change(model)
    torch.testing.assert_close(label(model), before)


def test_a_trained_order_is_read_at_each_call() -> None:
    model: Any = tlfx.align(Net(by_topk))
    label(model)
    before = plans(model)
    for first in (3, 7, 11):
        with torch.no_grad():
            model.order[first] = 10.0 + first
        assert label(model)[first] == 1
    assert plans(model) == before


def test_a_mask_of_another_count() -> None:
    """How many tokens a buffer keeps is a part of the graph, which is captured again when that changes."""
    model: Any = tlfx.align(Net(by_mask))
    assert label(model).tolist() == [1 / 8] * 8 + [0] * 8
    model.keep[4:] = False
    assert label(model).tolist() == [1 / 4] * 4 + [0] * 12


def write_then_multiply(net: Any, t: Tensor) -> Tensor:
    net.keep[15] = True
    return (t * net.keep[:, None]).sum(1, keepdim=True)


def write_then_choose(net: Any, t: Tensor) -> Tensor:
    net.keep[15] = True
    return torch.where(net.keep[:, None], t, 0.0).sum(1, keepdim=True)


def write_by_a_view_then_fill(net: Any, t: Tensor) -> Tensor:
    net.keep.view(4, 4)[3, 3:].fill_(True)
    return t.masked_fill(~net.keep[:, None], 0.0).mean(1, keepdim=True)


def write_then_index(net: Any, t: Tensor) -> Tensor:
    net.places[0] = 15
    return t[:, net.places[:9]].mean(1, keepdim=True)


@pytest.mark.parametrize("body", [write_then_multiply, write_then_choose, write_by_a_view_then_fill, write_then_index])
def test_a_buffer_that_the_forward_writes_before_it_is_read(body: Body) -> None:
    """The first call, too, has the labels of what the buffer holds after the write."""
    model = tlfx.align(Net(body))
    expected = torch.zeros(N)
    first = int(body is write_then_index)
    expected[[*range(first, first + 8), 15]] = 1 / 9
    for _ in range(3):
        torch.testing.assert_close(label(model), expected)
