"""Values: the tensors of a graph as propagation sees them, with the provenance of every element."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tlfx.propagate.maps import find_batch_axis, ids_of_sample
from tlfx.runtime import BatchAxis

__all__ = ["Bounds", "Factor", "Role", "Spectrum", "Value"]

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
        """The node that the value is to its statistics: a product or a sum itself, not the content that it is of."""
        return self.source if self.mass is None and not self.is_product else self.moved

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

    @property
    def numbered(self) -> Tensor:
        """A number for each element, the same for those that hold equal content."""
        numbers = torch.arange(torch.Size(self.shape).numel()).view(self.shape)
        return numbers if self.elements is None else self.elements.expand(self.shape)

    def expanded(self) -> tuple[Tensor, ...]:
        """The maps in the full shape of the value, without a copy."""
        return tuple(m.expand(self.shape) for m in self.maps)

    def with_maps(self, *maps: Tensor, role: Role | None = None) -> Value:
        """The same value with other maps, and another role if given."""
        return replace(
            self,
            maps=maps,
            role=role or self.role,
            # masses belong to the labels of the old maps
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
