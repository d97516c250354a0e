"""Reports: what they hold of each node, their JSON form, their graph, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import networkx as nx  # type: ignore[import-untyped]
import pytest
import torch
from helpers import ReportOf
from torch import Tensor, nn

import tlfx
from tlfx.errors import InputError, ProvenanceError, TlfxError
from tlfx.report import Report, inspect

SIZE = (3, 16, 16)
KEYS = {
    "schema": int,
    "model": str,
    "input": list,
    "training": bool,
    "batch": int,
    "parameters": int,
    "flops": int,
    "summary": dict,
    "flops_by_class": dict,
    "outputs": list,
    "nodes": list,
}
NODE_KEYS = {
    "name": str,
    "operator": str,
    "class": str,
    "module": str,
    "module_class": str,
    "inputs": list,
    "in_shapes": list,
    "out_shapes": list,
    "before": str,
    "after": str,
    "rule": str,
    "why": str,
    "flops": int,
    "read": bool,
    "skip": (str, type(None)),
    "branch": list,
    "shortcut": list,
}
CLASSES = ["spatial_mix", "channel_mix", "pointwise", "residual", "aggregation", "layout", "weight", "constant"]


def deit(report_of: ReportOf) -> Report:
    return report_of("deit_tiny_patch16_224", depth=2)


def one(report: Report, **wanted: Any) -> Any:
    """The only node with these attributes."""
    (node,) = [n for n in report.nodes if all(getattr(n, k) == v for k, v in wanted.items())]
    return node


def test_every_node_has_one_entry_in_order(report_of: ReportOf) -> None:
    report = deit(report_of)
    names = [n.name for n in report.nodes]
    assert len(set(names)) == len(names)
    assert all(names.index(i) < place for place, n in enumerate(report.nodes) for i in n.inputs)


def test_json_has_the_documented_form(report_of: ReportOf) -> None:
    data = json.loads(json.dumps(deit(report_of).to_dict()))
    assert list(data) == list(KEYS)
    assert all(type(data[k]) is kind for k, kind in KEYS.items())
    assert list(data["summary"]) == CLASSES == list(data["flops_by_class"])
    for node in data["nodes"]:
        assert list(node) == list(NODE_KEYS)
        assert all(isinstance(node[k], kind) for k, kind in NODE_KEYS.items())  # type: ignore[arg-type]
        assert node["class"] in CLASSES
    assert sum(data["summary"].values()) == len(data["nodes"])
    assert sum(data["flops_by_class"].values()) == data["flops"] == sum(n["flops"] for n in data["nodes"])


def test_json_is_the_same_each_time() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU())
    first, second = (inspect(model, input_size=SIZE).to_dict() for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


def test_a_linear_layer_says_what_it_contracts() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 4, 4)
            self.channels, self.tokens, self.head = nn.Linear(8, 8), nn.Linear(16, 16), nn.Linear(8 * 16, 5)

        def forward(self, x: Any) -> Any:
            x = self.channels(self.patch(x).flatten(2).transpose(1, 2))
            return self.head(self.tokens(x.transpose(1, 2)).flatten(1))

    report = inspect(Mixer(), input_size=SIZE)
    linears = {m: one(report, module=m, short="linear") for m in ("channels", "tokens", "head")}
    assert {m: (n.operation.value, n.why) for m, n in linears.items()} == {
        "channels": ("channel_mix", "contracts channels of one token"),
        "tokens": ("spatial_mix", "contracts tokens, with weights"),
        "head": ("aggregation", "contracts an axis that holds several tokens"),
    }
    assert (linears["head"].before, linears["head"].after) == ("(16 tokens × 8)", "1 token × 5")


def test_layouts_of_windows_grids_and_weights(report_of: ReportOf) -> None:
    report = report_of("swin_tiny_patch4_window7_224", depths=(2, 4), num_heads=(3, 6), drop_path_rate=0.0)
    first = [n for n in report.nodes if n.module.startswith("layers.0.blocks.0.attn")]
    assert [n.after for n in first if n.short == "linear"] == [
        "64 windows × 49 tokens × 288",
        "64 windows × 49 tokens × 96",
    ]
    assert [n.after for n in first if n.short == "matmul"] == ["W 64×3×49×49", "64 windows × 49 tokens × 3·32"]
    merging = one(report, module="layers.1.downsample.reduction", short="linear")
    assert (merging.before, merging.after) == ("28×28 × (4 tokens × 96)", "28×28 × 192")


def test_residuals_know_their_skip_and_branch(report_of: ReportOf) -> None:
    report = deit(report_of)
    attention, mlp = [n for n in report.nodes if n.operation.value == "residual"][:2]
    assert (attention.skip, mlp.skip) == ("dropout", attention.name)
    modules = [report.by_name[n].module for n in mlp.branch]
    assert modules == [f"blocks.0.{m}" for m in ("norm2", "mlp.fc1", "mlp.act", "mlp.drop1", "mlp.fc2", "mlp.drop2")]
    assert attention.why == "sums two values with content"
    assert mlp.why == "sums two values with content that have the same labels"


def test_a_projected_skip_starts_where_both_sides_do(report_of: ReportOf) -> None:
    report = report_of("resnet50", layers=(1, 1, 1, 1))
    add = next(n for n in report.nodes if n.operation.value == "residual")
    assert report.by_name[add.skip].module == "maxpool"
    assert [report.by_name[n].module for n in add.branch if report.by_name[n].short == "conv2d"] == [
        f"layer1.0.conv{i}" for i in (1, 2, 3)
    ]


def test_labels_are_read_where_the_classifier_reads_them(report_of: ReportOf) -> None:
    (output,) = deit(report_of).outputs
    assert (output.shape, output.labels, output.of) == ((2, 1000), 1, 197)
    assert deit(report_of).by_name[output.node].module == "blocks.1"


def test_what_no_output_depends_on_is_not_read() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.other = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(3, 8, 8, 8)

        def forward(self, x: Any) -> Any:
            return self.patch(x).mean((2, 3)) * self.other(x).sigmoid().amax((2, 3)).sum(1, keepdim=True)

    report = inspect(Aside(), input_size=SIZE)
    assert one(report, module="patch", short="conv2d").read
    assert not one(report, module="other", short="conv2d").read


def test_the_graph_holds_every_node_and_its_skips(report_of: ReportOf) -> None:
    report = deit(report_of)
    graph = report.to_networkx()
    assert list(graph) == [n.name for n in report.nodes]
    assert nx.is_directed_acyclic_graph(graph)
    kinds = [data["kind"] for _, target, data in graph.edges(data=True) if target == "add_1"]
    assert sorted(kinds) == ["branch", "skip"]
    read = nx.parse_graphml(report.to_graphml().partition("\n")[2])
    assert dict(read.nodes(data=True)) == dict(graph.nodes(data=True))
    assert {(a, b): k for a, b, k in read.edges(data="kind")} == {(a, b): k for a, b, k in graph.edges(data="kind")}
    dot = report.to_dot()
    assert dot.count(" -> ") == graph.number_of_edges()
    assert dot.count("fillcolor") == len(graph)


def test_the_mode_of_the_model_is_reported_and_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Dropout()).eval()
    report = inspect(model, input_size=SIZE)
    assert not report.training
    assert not model.training


def test_an_aligned_model_reports_as_itself() -> None:
    model = tlfx.align(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU()))
    assert inspect(model, input_size=SIZE).model == "Sequential"
    assert isinstance(model, tlfx.Aligned)


def test_other_arguments_and_other_types() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 4, 4)

        def forward(self, x: Any, scale: Any) -> Any:
            return self.patch(x) * scale

    images = torch.zeros(2, *SIZE)
    by_tuple = inspect(Scaled(), (images, torch.ones(2, 1, 1, 1)))
    by_name = inspect(Scaled(), {"x": images, "scale": torch.ones(2, 1, 1, 1)})
    assert by_tuple.counts == by_name.counts
    assert inspect(nn.Conv2d(3, 8, 4, 4).bfloat16(), input_size=SIZE).counts["aggregation"] == 1


def test_a_model_on_the_meta_device_is_inspected() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(16, 16))
    report = inspect(model, input_size=SIZE)
    assert (report.counts["aggregation"], report.counts["spatial_mix"]) == (1, 1)


class Shuffle(nn.Module):
    """Tokens written to other places."""

    def __init__(self, write: Any) -> None:
        super().__init__()
        self.patch, self.write = nn.Conv2d(3, 8, 4, 4), write
        self.register_buffer("order", torch.arange(16).flip(0))
        self.register_buffer("mask", torch.arange(16) > 7)

    def forward(self, x: Any) -> Any:
        return self.write(self.patch(x).flatten(2), self)


def test_an_index_without_data_is_followed() -> None:
    def write(tokens: Tensor, model: nn.Module) -> Any:
        written = tokens.clone()
        written[:, :, model.order] = tokens
        return written

    counts = inspect(Shuffle(write), input_size=SIZE).counts
    with torch.device("meta"):
        model = Shuffle(write)
    assert inspect(model, input_size=SIZE).counts == counts


def test_a_mask_without_data_is_explained() -> None:
    def write(tokens: Tensor, model: nn.Module) -> Any:
        return tokens.masked_scatter(model.mask, tokens[..., :8])  # type: ignore[arg-type]

    assert inspect(Shuffle(write), input_size=SIZE).counts["aggregation"] == 1
    with torch.device("meta"):
        model = Shuffle(write)
    with pytest.raises(ProvenanceError, match=r"meta device.*order.*build it on the CPU"):
        inspect(model, input_size=SIZE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": (0, 4)}, r"input_size=\(0, 4\): expected"),
        ({"example": torch.zeros(2, 3)}, r"no images among the arguments: .* got \(2, 3\)"),
        ({"example": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, "floating type"),
        ({"example": torch.zeros(2, *SIZE), "input_size": SIZE}, "both example and input_size"),
    ],
)
def test_bad_input_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        inspect(nn.Conv2d(3, 8, 4, 4), **arguments)


def test_select_by_module_and_class(report_of: ReportOf) -> None:
    report = deit(report_of)
    chosen = report.select("blocks.*.mlp", "channel,residual")
    assert [n.module for n in chosen] == [f"blocks.{b}.mlp.fc{i}" for b in (0, 1) for i in (1, 2)]
    with pytest.raises(TlfxError, match=r"unknown class 'chanel'; the classes are spatial_mix, channel_mix"):
        report.select(only="chanel")
