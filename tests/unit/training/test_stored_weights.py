"""What compiled blocks keep of weights between the passes: what is stored, and nothing wide."""

from collections import Counter

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._ops import OpOverload
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from library.errors import EnvironmentFault
from library.memory.quantized_layers import quantize_layers
from library.training import stored_weights
from library.training.compiling import compile_blocks
from networks.lora_linear import frozen_weight, lora_linear

WIDTH = 48
ROWS = 10  # an activation has far fewer numbers than a weight
IN_A_BLOCK = Counter()  # products of a compiled one, both passes


class Block(nn.Module):
    """A trained layer, attention, a layer with an adapter, and one without."""

    def __init__(self):
        super().__init__()
        self.trained, self.adapted, self.frozen = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.down, self.up = (nn.Parameter(torch.randn(size) / 7) for size in ((2, WIDTH), (WIDTH, 2)))

    def forward(self, x):
        x = x + F.gelu(self.trained(x))
        x = x + F.scaled_dot_product_attention(x, x, x)
        x = x + lora_linear(x, frozen_weight(self.adapted), None, self.down, self.up, 0.5)
        return x + self.frozen(F.gelu(x))


class Row(nn.Module):
    """Two blocks, with frozen layers in a form; None for float32."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.row = nn.ModuleList([Block(), Block()])
        for block in self.row:
            block.adapted.requires_grad_(False)
            block.frozen.requires_grad_(False)
            if form is not None:
                narrow = nn.ModuleDict({"adapted": block.adapted, "frozen": block.frozen})
                quantize_layers(narrow, form, torch.bfloat16, "cpu")
                block.adapted, block.frozen = narrow["adapted"], narrow["frozen"]

    def forward(self, x):
        for block in self.row:
            x = block(x)
        return x


class Products(TorchDispatchMode):
    """Counts matrix products and attention, of what runs as written."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        self.found.update(products([function]))
        return function(*arguments, **(settings or {}))


def products(functions):
    """Names of those of torch's functions that are matrix products or attention."""
    names = [str(function).split(".")[1].rstrip("_") for function in functions if isinstance(function, OpOverload)]
    return [name for name in names if name in ("mm", "addmm", "bmm") or "dot_product" in name]


def counted(graph, examples):
    IN_A_BLOCK.update(products([node.target for node in graph.graph.nodes]))
    return graph.forward


def cut(joint, *arguments, **settings):
    stored_weights.widen_again(joint.graph)
    return min_cut_rematerialization_partition(joint, *arguments, **settings)


# what inductor does before it makes code, without the code
CUT_AS_INDUCTOR_DOES = aot_autograd(fw_compiler=counted, bw_compiler=counted, partition_fn=cut)


def train(row):
    """Result with gradients, and the numbers in tensors that are kept beside the weights as they are, largest first."""
    stored = {tensor.data_ptr() for tensor in row.state_dict().values()}
    kept = []

    def pack(tensor):
        if tensor.is_floating_point() and tensor.data_ptr() not in stored:
            kept.append(tensor.numel())
        return tensor

    x = torch.randn(1, 1, ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    trained = [x, *(parameter for parameter in row.parameters() if parameter.requires_grad)]
    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        output = row(x).float().square().mean()
    return (output, *torch.autograd.grad(output, trained)), sorted(kept, reverse=True)


@pytest.mark.parametrize("form", [None, "int8", "fp8", "nf4"])
def test_nothing_wide_is_kept_from_pass_to_pass_and_no_product_is_computed_twice(form):
    torch._dynamo.reset()
    IN_A_BLOCK.clear()
    row = Row(form)
    with Products() as as_written:
        plain, _ = train(row)
    compile_blocks(row, CUT_AS_INDUCTOR_DOES)
    compiled, kept = train(row)
    torch.testing.assert_close(compiled, plain, atol=1e-3, rtol=2e-2)
    assert kept[0] < WIDTH * WIDTH
    assert {name: 2 * number for name, number in IN_A_BLOCK.items()} == as_written.found


def test_inductor_is_told_so(monkeypatch):
    """Up to where it would make code."""
    from torch._inductor import config

    torch._dynamo.reset()
    graphs = []
    own = stored_weights.widen_again
    monkeypatch.setattr(stored_weights, "widen_again", lambda graph: (own(graph), graphs.append(graph)))
    row = Row("int8")
    compile_blocks(row, "inductor")
    fault = pytest.raises(EnvironmentFault, match="inductor could not compile the model")
    with config.patch({"cpp.cxx": ("/nowhere/g++",)}), fault:
        train(row)
    assert any(node.meta.get("recompute") for node in graphs[0].nodes)
