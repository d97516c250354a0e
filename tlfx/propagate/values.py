"""Provenance: the sample and the label that every element of a value belongs to.

A *map* is an int64 tensor with as many axes as the value, of size 1 along every axis along which it is constant.
Its elements are ``label id * batch + sample``, or ``NONE`` for an element that holds no image content. Label ids count
the labels of all label tensors of a graph, so that a value may hold labels of several of them (a concatenation, say).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tlfx.errors import ProvenanceError
from tlfx.runtime import BatchAxis, merge_batch, split_batch

__all__ = [
    "IMAGE",
    "NONE",
    "Bounds",
    "Factor",
    "Role",
    "Spectrum",
    "Value",
    "compact",
    "fill_none",
    "fill_tokens",
    "find_batch_axis",
    "ids_of_sample",
    "image_map",
    "map_of_ids",
]

NONE = -1
"""Map element of padding and other elements without image content."""
IMAGE = 0
"""Id of the image-level share λ, the label of tokens without image content (eq. 5)."""


Factor = tuple["Value", Sequence[int]]
"""A factor of a product, and the axes of the product that its own are, -1 for those that the product lacks."""
Bounds = tuple[Tensor, Tensor]
"""The least and the greatest value of each element of an index, of size 1 along axes along which they are constant."""


class Role(Enum):
    """The meaning of a value to labels."""

    CONSTANT = "constant"
    """No image content: parameters, indices, noise."""
    CONTENT = "content"
    """Image content: one map."""
    WEIGHT = "weight"
    """A mixing weight W(Z), or a decision: depends on the image and carries no label. No map, or one for each side."""
    CONTEXT = "context"
    """kᵀv, tokens contracted before channels: one map for each side that may turn out to be the value."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph as propagation sees it: a shape at the analysed batch size, a role and maps."""

    node: Node
    shape: tuple[int, ...]
    batch: int
    role: Role = Role.CONSTANT
    maps: tuple[Tensor, ...] = ()
    softmax_dim: int | None = None
    """Axis along which the value sums to 1, if it is the output of a softmax over tokens."""
    spectrum: Spectrum | None = None
    """The Fourier transform that the value is, if only constant filters came after it."""
    pending: Tensor | None = None
    """The map of a product of content with a factor that differs from token to token: ids of labels with the mass
    |factor|, by which a sum over those tokens weights them (Y ← Norm(|w|)·Y)."""
    is_sum: bool = False
    """Whether ``pending`` is that of sums over tokens, such as a matrix product makes: it counts in further sums, but
    not under the next weights."""
    mass: Callable[[], Tensor] | None = None
    """Computes ``pending`` of a product with a factor that is the same for all its tokens: for sums of several."""
    by_element: Callable[[], Tensor] | None = None
    """Computes ``pending`` with the mass of every element, also along axes of channels, for a product with another
    factor that differs along them."""
    by_factor: Mapping[Node, tuple[Callable[[], Tensor], bool]] = field(default_factory=dict)
    """``by_element`` as if a factor, named by its node, were a weight, and whether it was summed since: so it is in a
    quotient by the sum of that factor."""
    sum_of: Node | None = None
    """The node whose sum or mean over some axes the value is."""
    log_sum_of: Node | None = None
    """The node whose exponentials' sum over some axes the value is the logarithm of."""
    biased: bool = False
    """Whether elements without content may hold other numbers than zero, as those that a bias was added to: these are
    tokens without content (eq. 5), and no padding, for weights that the image decides."""
    weighs: bool = False
    """Whether content is a weight of its tokens: a softmax over them, or a function of one."""
    is_product: bool = False
    """Whether the value is a product with a factor, or a part of one."""
    factored: Node | None = None
    """The node of the value that a product with factors is an element-wise function of without them."""
    origin: Node | None = None
    """The node that data movement and products with factors took the content from, if not this one."""
    part_of: Node | None = None
    """The node whose elements the value holds, moved or in part; unlike ``origin``, this may be a product."""
    statistic: Mapping[Node, int] = field(default_factory=dict)
    """The sources of the content that the value is a statistic of (a mean, a maximum), and the sign with which; several
    for a statistic of a statistic, such as the mean of weighted sums."""
    function_of: Node | None = None
    """The node of the value that it is an element-wise function or a statistic of, if not of itself."""
    factors: tuple[Factor, Factor] | None = None
    """The factors of an outer product: once it is summed over tokens, it is a contraction of the two."""
    is_gate: bool = False
    """Whether the value is a function of values that are broadcast along axes of it: a gate of any full content."""
    running: Node | None = None
    """The source of the content of which the value holds running sums."""
    softmax_of: Node | None = None
    """The softmax over tokens whose weights, or some of them, the value holds."""
    mixed_by: Node | None = None
    """The softmax of which a part mixed the content: parts of one softmax count by their masses in a sum."""
    elements: Tensor | None = None
    """A map of elements that hold equal content where its numbers are equal, of a value that is repeated along an
    axis."""
    by_place: bool = False
    """Whether constants make elements with equal content differ, as position biases do those of a gate."""
    read_as: Any = None
    """Stands for the value among the arguments of a label tensor, if that is not its node."""
    number: float | None = None
    """The number that a constant holds everywhere, if its rule knows it."""
    bounds: Bounds | None = None
    """The bounds of indices that the image decides."""
    mixes_samples: Node | None = None
    """The operator that computed the value, or what it is computed from, over several samples of the batch."""

    @property
    def is_content(self) -> bool:
        """Whether the value carries labels."""
        return self.role is Role.CONTENT

    @property
    def source(self) -> Node:
        """The node that computed the content, before data movement and products with factors."""
        return self.origin or self.node

    @property
    def subject(self) -> Node:
        """The node of the one value that the value is an element-wise function or a statistic of."""
        return self.function_of or self.node

    @property
    def base(self) -> Node:
        """The subject of a value without the factors that it was multiplied by."""
        return self.factored or self.subject

    @property
    def measured(self) -> Node:
        """The node that the value is to its statistics: a product itself, not the content that is multiplied."""
        return self.moved if self.is_product else self.source

    @property
    def moved(self) -> Node:
        """The node that computed the value before data movement, or the subject of a function of one."""
        return self.part_of or self.subject

    @property
    def summand(self) -> Node:
        """The node that the value is to its sums."""
        return self.sum_of or self.measured

    @property
    def read(self) -> Any:
        """What label tensors read as the value."""
        return self.node if self.read_as is None else self.read_as

    @property
    def is_constant(self) -> bool:
        """Whether the value is free of image content."""
        return self.role is Role.CONSTANT

    @property
    def map(self) -> Tensor:
        """The one map of a content value."""
        (only,) = self.maps
        return only

    def expanded(self) -> tuple[Tensor, ...]:
        """The maps in the full shape of the value, without a copy."""
        return tuple(m.expand(self.shape) for m in self.maps)

    def with_maps(self, *maps: Tensor, role: Role | None = None) -> Value:
        """The same value with other maps, and another role if given."""
        return replace(
            self,
            maps=maps,
            role=role or self.role,
            pending=None,
            mass=None,
            by_element=None,
            by_factor={},
            elements=None,
        )

    @cached_property
    def batch_axis(self) -> BatchAxis:
        """The place of the batch. Raises ProvenanceError if samples are mixed."""
        return find_batch_axis(self.map, self.batch)

    @cached_property
    def ids(self) -> Tensor:
        """Label ids of one sample: the map with its batch axis split into (outer, inner) and the sample taken away.

        Raises ProvenanceError if two samples are laid out differently.
        """
        return ids_of_sample(self.map, self.batch, self.batch_axis)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The Fourier transform of a value along ``axes``, of ``lengths``, times ``filters``."""

    source: Value
    axes: tuple[int, ...]
    lengths: tuple[int, ...]
    filters: tuple[Value, ...] = ()


def compact(full: Tensor) -> Tensor:
    """A map narrowed to size 1 along each axis along which it is constant.

    >>> compact(torch.tensor([[1, 1, 1], [2, 2, 2]])).shape
    torch.Size([2, 1])
    """
    for axis, size in enumerate(full.shape):
        if size > 1 and (full.stride(axis) == 0 or _is_constant(full, axis)):
            full = full.narrow(axis, 0, 1)
    return full


def _is_constant(full: Tensor, axis: int) -> bool:
    line = full[tuple(slice(None) if a == axis else slice(1) for a in range(full.dim()))]  # decides for most axes
    return all(bool((part == part.narrow(axis, 0, 1)).all()) for part in (line, full))


def find_batch_axis(content: Tensor, batch: int) -> BatchAxis:
    """The axis of a compact map along which the sample changes, as outer · batch · inner."""
    sample = torch.where(content == NONE, NONE, content % batch)
    for axis in range(content.dim()):
        along = sample.movedim(axis, 0).reshape(content.shape[axis], -1)
        here = along.amax(1)
        if not bool((torch.where(along == NONE, here[:, None], along) == here[:, None]).all()):
            continue
        where = _split_of(here, batch, axis)
        if where is not None:
            return where
    raise ProvenanceError(
        f"a value of shape {tuple(content.shape)} mixes the samples of a batch, or has lost its batch axis; "
        "labels belong to one sample each. Align the part of the model before it instead."
    )


def _split_of(here: Tensor, batch: int, axis: int) -> BatchAxis | None:
    length = len(here)
    known = here != NONE
    for inner in range(1, length // batch + 1):
        if length % (inner * batch):
            continue
        pattern = torch.arange(length) // inner % batch
        if bool((here[known] == pattern[known]).all()) and len(pattern[known].unique()) == batch:
            return BatchAxis(axis, length // (inner * batch), inner)
    return None


def ids_of_sample(content: Tensor, batch: int, where: BatchAxis) -> Tensor:
    """Label ids of the first sample of a map, its batch axis replaced by the two axes (outer, inner).

    Raises ProvenanceError if the map permutes the samples of the batch, or lays them out differently.
    """
    by_sample = split_batch(content, where)
    if len(by_sample) != batch:
        raise ProvenanceError(
            f"a value of shape {tuple(content.shape)} has lost its batch axis; labels belong to one sample each. "
            "Align the part of the model before it instead."
        )
    samples = torch.arange(batch).view(-1, *[1] * content.dim(), 1)
    if not bool(((by_sample == NONE) | (by_sample % batch == samples)).all()):
        raise ProvenanceError(
            "an operator permutes the samples of a batch, so that samples would be mixed; "
            "labels belong to one sample each. Align the part of the model before it instead."
        )
    ids = torch.where(by_sample == NONE, NONE, by_sample.div(batch, rounding_mode="floor"))
    if not bool((ids == ids[:1]).all()):
        raise ProvenanceError(
            "the samples of a batch are laid out differently, so that a label would depend on its place in the batch"
        )
    return compact(ids[0])


def map_of_ids(ids: Tensor, batch: int, where: BatchAxis) -> Tensor:
    """The inverse of :func:`ids_of_sample`: a compact map from the label ids of one sample."""
    shape = list(ids.shape)
    shape[where.axis : where.axis + 2] = [where.outer, where.inner]
    samples = torch.arange(batch).view(-1, *[1] * ids.dim())
    ids = ids.expand(shape)
    return merge_batch(torch.where(ids == NONE, NONE, ids * batch + samples), where)


def fill_none(ids: Tensor, axes: Sequence[int]) -> Tensor:
    """Ids in which elements without content take the one id that they meet along ``axes``, if there is just one."""
    if not axes or not bool((ids == NONE).any()):
        return ids
    filled = torch.where(ids == NONE, ids.amax(tuple(axes), keepdim=True), ids)
    constant = all(filled.shape[a] == 1 or _is_constant(filled, a) for a in axes)
    return compact(filled) if constant else ids


def fill_tokens(content: Tensor, batch: int) -> Tensor:
    """A map in which tokens without content, among tokens with content, have the image-level label (eq. 5).

    Tokens differ in their ids: elements that share the id of others along an axis are channels of one token.
    """
    channels = [a for a in range(content.dim()) if content.shape[a] > 1 and _is_constant_but_none(content, a)]
    empty = content == NONE
    if not bool(empty.any()):
        return content
    for axis in channels:
        empty = empty.all(axis, keepdim=True)
    where = find_batch_axis(content, batch)
    return compact(torch.where(empty, image_map(content.shape, batch, where), content))


def image_map(shape: Sequence[int], batch: int, where: BatchAxis) -> Tensor:
    """The compact map of a value that has the image-level label everywhere, its batch at ``where``."""
    sample = torch.arange(shape[where.axis]) // where.inner % batch
    return IMAGE * batch + sample.view([-1 if axis == where.axis else 1 for axis in range(len(shape))])


def _is_constant_but_none(content: Tensor, axis: int) -> bool:
    return bool(((content == NONE) | (content == content.amax(axis, keepdim=True))).all())
