"""Values over several samples of the batch: refused where they reach content, allowed where they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import mixture, pictures, slow_except
from torch import Tensor, nn

import tlfx
from tlfx.errors import ProvenanceError

BATCH, CHANNELS, SIDE = 3, 4, 4
TOKENS = SIDE * SIDE
Function = Callable[[Tensor], Tensor]
"""Tokens (batch, TOKENS, CHANNELS) to a value that is broadcast to them."""


class Net(nn.Module):
    """Tokens of 4 × 4 pixels, a function of them, the mean of tokens, and a head."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head, self.function = nn.Conv2d(3, CHANNELS, 4, 4), nn.Linear(CHANNELS, 5), function
        self.norm, self.seen = nn.BatchNorm1d(CHANNELS), None
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("queue", torch.zeros(6, CHANNELS))

    def forward(self, images: Tensor) -> Any:
        out = self.function(self, self.stem(images).flatten(2).mT)
        tokens, *others = out if isinstance(out, tuple) else (out,)
        logits = self.head(tokens.mean(1))
        return (logits, *others) if others else logits


def call(function: Callable[[Any, Tensor], Any]) -> Any:
    return tlfx.align(Net(function))(pictures(BATCH), mixture(BATCH))


def channels_first(x: Tensor) -> Tensor:
    return x.mT.unflatten(2, (SIDE, SIDE))


def last(x: Tensor) -> Tensor:
    """The samples on the last axis, (tokens, channels, batch)."""
    return x.permute(1, 2, 0)


def first(x: Tensor) -> Tensor:
    return x.permute(2, 0, 1)


def joined(x: Tensor) -> Tensor:
    """Tokens of all samples side by side, (batch · tokens, channels)."""
    return x.flatten(0, 1)


def of_samples(x: Tensor) -> Tensor:
    """A number for each sample, for all its tokens and channels."""
    return x.view(-1, 1, 1)


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def queue_of_capacity(x: Tensor) -> Tensor:
    """Which tokens are among the first ten of the batch that are positive, as experts of limited capacity see them."""
    return ((joined(x).sum(-1) > 0).long().cumsum(0) < 10).view(len(x), TOKENS, 1)


def expert_choice(x: Tensor) -> Tensor:
    """The eight tokens of the batch that score highest, multiplied by two."""
    chosen = joined(x).sum(-1).topk(8, 0)[1]
    return torch.zeros_like(joined(x)).index_add(0, chosen, 2 * joined(x)[chosen]).view_as(x)


def mean_kept(x: Tensor) -> Tensor:
    """A statistic that is written to a new tensor and read from it."""
    out = torch.empty(TOKENS, CHANNELS)
    out.copy_(x.mean(0))
    return out


def later_plus_earlier(x: Tensor) -> Tensor:
    out = x.clone()
    out[1:] += x[:-1]
    return out


def temporal_shift(x: Tensor) -> Tensor:
    """Half of the channels from the next sample."""
    return torch.cat((F.pad(x[1:, :, :2], (0, 0, 0, 0, 0, 1)), x[..., 2:]), -1)


MIXED: dict[str, Function] = {
    # scans
    "cumsum": lambda x: x.cumsum(0),
    "cumsum of all": lambda x: joined(x).cumsum(0).view_as(x),
    "cumprod": lambda x: x.cumprod(0),
    "cummax": lambda x: x.cummax(0)[0],
    "cummin": lambda x: x.cummin(0)[0],
    "logcumsumexp": lambda x: x.logcumsumexp(0),
    "diff": lambda x: torch.diff(x, dim=0, append=x[:1]),
    "rnn": lambda x: nn.RNN(CHANNELS, CHANNELS).requires_grad_(False)(x)[0],
    # normalisation
    "softmax": lambda x: x.softmax(0),
    "softmax of all": lambda x: x.flatten().softmax(0).view_as(x),
    "log_softmax": lambda x: x.log_softmax(0),
    "softmin": lambda x: F.softmin(x, dim=0),
    "shares": lambda x: x.exp() / x.exp().sum(0, keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=0),
    "layer_norm": lambda x: F.layer_norm(last(x), (BATCH,)).permute(2, 0, 1),
    "instance_norm": lambda x: F.instance_norm(last(x)).permute(2, 0, 1),
    "local_response_norm": lambda x: F.local_response_norm(x.transpose(0, 1), 3).transpose(0, 1),
    "batch norm by hand": lambda x: (x - x.mean((0, 1))) / (x.var((0, 1), correction=0) + 1e-5).sqrt(),
    "response norm": lambda x: x.norm(dim=1, keepdim=True) / x.norm(dim=1, keepdim=True).mean(0),
    # statistics
    "std": lambda x: x.std(0, keepdim=True),
    "var": lambda x: x.var(0),
    "std_mean": lambda x: torch.std_mean(x, 0, keepdim=True)[1],
    "var_mean": lambda x: torch.var_mean(x, (0, 1), keepdim=True)[0],
    "minibatch deviation": lambda x: x.std(0).mean().expand(len(x), TOKENS, CHANNELS),
    "mean": lambda x: x.mean(0),
    "mean of all": lambda x: x.mean(),
    "mean of tokens": lambda x: x.mean((0, 1)),
    "mean of maps": lambda x: channels_first(x).mean((0, 2, 3)),
    "count": lambda x: (x > 0).count_nonzero(0),
    "count of all": lambda x: (x > 0).count_nonzero(),
    "histogram": lambda x: torch.histc(x, 4),
    "distance of batches": lambda x: torch.dist(x, x.flip(0)),
    "sum": lambda x: x.sum(0),
    "sum of tokens": lambda x: x.sum((0, 1), keepdim=True),
    "sum of maps": lambda x: channels_first(x).sum((0, 2, 3)),
    "sum of samples": lambda x: sum(x.unbind(0), start=torch.tensor(0.0)),
    "prod": lambda x: x.prod(0),
    "centred": lambda x: x - x.mean(0),
    "centred tokens": lambda x: x - joined(x).mean(0),
    "logsumexp": lambda x: x.logsumexp(0),
    "norm": lambda x: x.norm(dim=0),
    "norm of all": lambda x: x.norm(),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=0),
    "matrix_norm": lambda x: torch.linalg.matrix_norm(x[..., 0]),
    "renorm": lambda x: x.renorm(2, 1, 1.0),
    "renorm of channels": lambda x: x.renorm(2, -1, 1.0),
    "group_norm of all": lambda x: F.group_norm(x.reshape(1, -1, CHANNELS), 1).view_as(x),
    # losses
    "mse_loss": lambda x: F.mse_loss(x, x.flip(1)),
    "l1_loss": lambda x: F.l1_loss(x, x.flip(1)),
    "huber_loss": lambda x: F.huber_loss(x, x.flip(1)),
    "sum of squares": lambda x: F.mse_loss(x, torch.zeros(()).expand_as(x), reduction="sum"),
    "cross_entropy": lambda x: F.cross_entropy(x.mT, x.argmax(-1)),
    "cross_entropy of classes": lambda x: F.cross_entropy(x.mean(1), torch.zeros(len(x), dtype=torch.long)),
    "kl_div": lambda x: F.kl_div(x.log_softmax(-1), x.softmax(-1).flip(1), reduction="batchmean"),
    "bce": lambda x: F.binary_cross_entropy_with_logits(x, x.sigmoid().flip(1)),
    # extremes and orders
    "isin": lambda x: torch.isin(x, x.flip(0)),
    "isin of tokens": lambda x: torch.isin(x[:, :1], x),
    "amax": lambda x: x.amax(0),
    "amin": lambda x: x.amin((0, 2), keepdim=True),
    "aminmax": lambda x: torch.aminmax(x, dim=0)[1],
    "max": lambda x: x.max(0)[0],
    "index of the largest": lambda x: x.max(0)[1],
    "max of all": lambda x: x.max(),
    "min": lambda x: x.min(0, keepdim=True)[0],
    "median": lambda x: x.median(0)[0],
    "mode": lambda x: x.mode(0)[0],
    "quantile": lambda x: x.quantile(0.5, 0),
    "kthvalue": lambda x: x > x.norm(dim=-1).flatten().kthvalue(20)[0],
    "maximum": lambda x: torch.maximum(x, x.flip(0)),
    "topk": lambda x: x.topk(2, 0)[0].mean(0),
    "sort": lambda x: x.sort(0)[0],
    "sort of all": lambda x: x.flatten().sort()[0].view_as(x),
    "argsort": lambda x: x.argsort(0),
    "samples in an order": lambda x: x[x.sum((1, 2)).argsort(0)],
    "rank": lambda x: of_samples((x.sum((1, 2))[:, None] > x.sum((1, 2))).sum(1)),
    "threshold": lambda x: x > x.mean(),
    "clamp": lambda x: x.clamp(max=x.mean()),
    "quantised": lambda x: (x / x.abs().max() * 127).round(),
    "capacity": queue_of_capacity,
    "expert choice": expert_choice,
    # products
    "einsum of a sum": lambda x: torch.einsum("bnc->nc", x),
    "einsum of channels": lambda x: torch.einsum("bnc,bnd->cd", x, x).mean(0),
    "einsum of samples": lambda x: of_samples(torch.einsum("bnc,dnc->bd", x, x).sum(1)),
    "tensordot": lambda x: torch.tensordot(x, x, ([0], [0])).mean((2, 3)),
    "transposed product": lambda x: (x.flatten(1).T @ x.flatten(1)).mean(),
    "similarity of samples": lambda x: of_samples((x.flatten(1) @ x.flatten(1).T).mean(1)),
    "weights of samples": lambda x: (torch.ones(len(x), len(x)) @ x.flatten(1)).view_as(x),
    "linear": lambda x: F.linear(last(x), torch.ones(BATCH, BATCH)).permute(2, 0, 1),
    "cdist as weights": lambda x: ((-torch.cdist(x.flatten(1), x.flatten(1))).softmax(-1) @ x.flatten(1)).view_as(x),
    "distances": lambda x: of_samples((x.flatten(1)[:, None] - x.flatten(1)).square().sum(-1).mean(1)),
    "attention of samples": lambda x: attend(x.transpose(0, 1)).transpose(0, 1),
    "attention of all tokens": lambda x: attend(joined(x)[None, None]).view_as(x),
    "attention of all tokens by matmul": lambda x: ((joined(x) @ joined(x).T).softmax(-1) @ joined(x)).view_as(x),
    "fft": lambda x: torch.fft.fft(x, dim=0).real,
    # movement
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "roll of all": lambda x: x.roll(1),
    "roll of half": lambda x: torch.cat((x[:, :8], x.roll(1, 0)[:, 8:]), 1),
    "temporal shift": temporal_shift,
    "cat": lambda x: torch.cat((x[1:], x[:1])),
    "first sample": lambda x: x[:1],
    "gather": lambda x: x.gather(0, torch.zeros(len(x), TOKENS, CHANNELS, dtype=torch.long)),
    "unfold": lambda x: torch.cat((x, x[:1])).unfold(0, 2, 1).mean(-1),
    "index_add": lambda x: torch.zeros(1, TOKENS, CHANNELS).index_add(0, torch.zeros(len(x), dtype=torch.long), x),
    "scatter_reduce": lambda x: torch.zeros_like(x).scatter_reduce(0, torch.zeros_like(x).long(), x, "amax"),
    "pooling": lambda x: F.avg_pool1d(last(x), 3, 1, 1).permute(2, 0, 1),
    "diagonal": lambda x: x.diagonal(0, 0, 1).mT[:, None],
    "diagonal as a gate": lambda x: x.diagonal(0, 0, 1).mT[:, None].sigmoid(),
    # written in place
    "sample added": later_plus_earlier,
    "centred in place": lambda x: x.clone().sub_(x.mean(0)),
    "statistic written": mean_kept,
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_samples_is_refused_where_it_reaches_content(name: str) -> None:
    with pytest.raises(ProvenanceError, match=r"labels belong to one sample each|slides over the batch"):
        call(lambda s, x: x * MIXED[name](x))


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "joined": lambda x, y: torch.cat((x, y.expand_as(x)), 1),
    "gate": lambda x, y: x * y.sigmoid(),
    "detached": lambda x, y: x * y.detach(),
    "subtracted": lambda x, y: x - y,
    "scale": lambda x, y: F.layer_norm(x, (CHANNELS,), y.mean((0, 1)) if y.dim() > 2 else y.expand(CHANNELS)),
    "index": lambda x, y: x[:, (y.sum() > 0).long().view(1)],
    "mask": lambda x, y: x.masked_fill(y > 0, 0.0),
    "condition": lambda x, y: torch.where(y > 0, x, -x),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", slow_except(["mean of tokens"], ["softmax", "mean of tokens", "max of all"]))
def test_any_way_to_content(name: str, way: str) -> None:
    with pytest.raises(ProvenanceError, match="labels belong to one sample each"):
        call(lambda s, x: WAYS[way](x, MIXED[name](x)))


def written(write: Callable[[Any, Tensor], Any], read: Callable[[Any, Tensor], Tensor]) -> Any:
    """``write``, then ``read``."""

    def function(s: Any, x: Tensor) -> Tensor:
        write(s, x)
        return read(s, x)

    return function


def mean(x: Tensor) -> Tensor:
    return x.detach().mean((0, 1))


def assign(s: Any, x: Tensor) -> None:
    s.seen = mean(x)


def keep_of_queue(s: Any, x: Tensor) -> None:
    """The newest samples in front, as momentum contrast keeps them."""
    s.queue.copy_(torch.cat((x.detach().mean(1)[:2], s.queue[:-2])))


def centred(s: Any, x: Tensor) -> Tensor:
    return x - s.mean


READ = {
    "copied": written(lambda s, x: s.mean.copy_(mean(x)), centred),
    "moving average": written(lambda s, x: s.mean.lerp_(mean(x), 0.1), centred),
    "moving average in two": written(lambda s, x: s.mean.mul_(0.9).add_(mean(x), alpha=0.1), centred),
    "a slice": written(lambda s, x: s.mean[:2].copy_(mean(x)[:2]), centred),
    "data": written(lambda s, x: s.mean.data.copy_(mean(x)), centred),
    "an attribute": written(assign, lambda s, x: x * s.seen),
    "a queue": written(keep_of_queue, lambda s, x: x + (x @ s.queue.T).softmax(-1) @ s.queue),
}


@pytest.mark.parametrize("name", READ)
def test_statistics_that_are_kept_and_read_are_refused(name: str) -> None:
    with pytest.raises(ProvenanceError, match="labels belong to one sample each"):
        call(READ[name])


def itself(s: Any, x: Tensor) -> Tensor:
    return x


def before(read: Callable[[Any, Tensor], Tensor], write: Callable[[Any, Tensor], Any]) -> Any:
    """``read``, then ``write``."""

    def function(s: Any, x: Tensor) -> Tensor:
        out = read(s, x)
        write(s, x)
        return out

    return function


ALLOWED = {
    "batch norm": lambda s, x: s.norm(x.mT).mT,
    "batch norm without statistics": lambda s, x: F.batch_norm(x.mT, None, None, training=True).mT,
    "statistics of a sample": lambda s, x: x - x.mean((1, 2), keepdim=True),
    "samples in groups": lambda s, x: F.group_norm(x.reshape(1, -1, CHANNELS), len(x)).view_as(x),
    "each sample in a group": lambda s, x: F.group_norm(x.reshape(1, -1, CHANNELS), 2 * len(x)).view_as(x),
    "norm of a sample": lambda s, x: x.renorm(2, 0, 1.0),
    "losses of elements": lambda s, x: F.mse_loss(x, torch.zeros(()).expand_as(x), reduction="none"),
    "a loss": lambda s, x: (x, F.mse_loss(x, x.flip(1))),
    "among constants": lambda s, x: x * torch.isin(x.round(), torch.tensor([0.0, 1.0, 2.0])).float().add(1),
    "size of the batch": lambda s, x: x / len(x),
    "a moving average": written(lambda s, x: s.mean.lerp_(mean(x), 0.1), itself),
    "an extreme": written(lambda s, x: s.mean.copy_(torch.minimum(s.mean, x.detach().amin((0, 1)))), itself),
    "a queue": written(keep_of_queue, itself),
    "read before it is written": before(centred, lambda s, x: s.mean.copy_(mean(x))),
    "attended before it is written": before(lambda s, x: x + (x @ s.queue.T).softmax(-1) @ s.queue, keep_of_queue),
    "an attribute": written(assign, itself),
    "a value that is not used": written(lambda s, x: x.std(0).mean().log(), itself),
    "a second output": lambda s, x: (x, x.softmax(-1).mean((0, 1)).square().sum()),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_does_not_reach_content_is_allowed(name: str) -> None:
    """Labels are those without it: the mean of all tokens."""
    _, soft = call(ALLOWED[name])
    _, expected = call(itself)
    torch.testing.assert_close(soft[0] if isinstance(soft, tuple) else soft, expected, rtol=0, atol=1e-6)
