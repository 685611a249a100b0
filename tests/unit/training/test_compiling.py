"""Compiled blocks: one graph for equal blocks, no storm of them, and errors that are told in one sentence."""

from dataclasses import replace

import pytest
import torch
import torch._dynamo
from torch import nn

from library.errors import EnvironmentFault, OptionError
from library.memory.block_swap import BlockSwapper
from library.memory.swap_plan import swap_plan
from library.models.mmdit import MMDiT, MMDiTConfig
from library.options.groups import ComputeOptions, MemoryOptions
from library.training.compiling import CompiledBlock, check_compiler, compile_blocks

DUAL, PLAIN, LAST = 0, 1, 3  # what the blocks are
CONFIG = MMDiTConfig(
    depth=4,
    num_heads=1,
    head_dim=8,
    context_dim=8,
    pooled_dim=8,
    frequencies=8,
    position_side=8,
    dual_attention=(DUAL,),
)
GRAPHS = []


@pytest.fixture(autouse=True)
def compiler_that_knows_nothing():
    """What torch's compiler has learned of sizes and blocks stays with it from test to test."""
    torch._dynamo.reset()


def kept(graph, examples):
    """A backend that computes as written, and keeps count."""
    GRAPHS.append(graph)
    return graph.forward


def model_of(config=CONFIG):
    torch.manual_seed(0)
    model = MMDiT(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def inputs(height, width, num_rows=3):
    draw = torch.Generator().manual_seed(1)
    sizes = (2, 16, height, width), (2,), (2, num_rows, 8), (2, 8)
    latents, timesteps, context, pooled = (torch.randn(size, generator=draw) for size in sizes)
    return latents, timesteps.abs() * 500, context, pooled


def gradients(model, *sizes):
    output = model(*inputs(*sizes)).square().mean()
    return output, *torch.autograd.grad(output, list(model.parameters()))


def num_new(run):
    before = len(GRAPHS)
    run()
    return len(GRAPHS) - before


def test_three_kinds_of_blocks_are_three_graphs_and_sizes_add_three_more():
    """A graph that breaks would be several."""
    plain, model = model_of(), model_of()
    compile_blocks(model, kept)
    found = []
    assert num_new(lambda: found.append(gradients(model, 4, 6))) == 3
    assert num_new(lambda: found.append(gradients(model, 4, 6))) == 0
    assert num_new(lambda: found.append(gradients(model, 6, 8, 5))) == 3
    assert num_new(lambda: found.append(gradients(model, 8, 12, 7))) == 0
    torch.testing.assert_close(found[0], gradients(plain, 4, 6))
    torch.testing.assert_close(found[3], gradients(plain, 8, 12, 7))
    model.gradient_checkpointing = True
    assert num_new(lambda: found.append(gradients(model, 8, 12, 7))) == 0
    torch.testing.assert_close(found[4], found[3])
    swapped = model_of()
    compile_blocks(swapped, kept)
    BlockSwapper(swapped.joint_blocks, swap_plan(4, 3, 1), torch.device("cpu"))
    assert num_new(lambda: found.append(gradients(swapped, 8, 12, 7))) == 0  # graphs know no addresses
    torch.testing.assert_close(found[5], found[3])


def test_where_padding_is_merged_any_number_of_rows_has_the_same_graphs():
    model = model_of(replace(CONFIG, depth=1, dual_attention=()))
    compile_blocks(model, kept, is_varied=True)

    def pass_through(num_rows, bias):
        model(*inputs(4, 6, num_rows), context_bias=bias).sum().backward()

    assert num_new(lambda: pass_through(64, torch.zeros(2, 64))) == 1
    assert num_new(lambda: pass_through(96, torch.zeros(2, 96))) == 0
    assert num_new(lambda: pass_through(154, None)) == 1
    assert num_new(lambda: pass_through(64, torch.zeros(2, 64))) == 0


class Block(nn.Module):
    """Adds its number."""

    def __init__(self, number=0):
        super().__init__()
        self.number = number

    def forward(self, x):
        return x + self.number


class Row(nn.Module):
    """Blocks."""

    def __init__(self, *numbers):
        super().__init__()
        self.row = nn.ModuleList(Block(number) for number in numbers)

    def forward(self, x):
        for block in self.row:
            x = block(x)
        return x


def test_beyond_the_limit_nothing_is_compiled_and_that_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(CompiledBlock, "_has_told", False)
    row = Row(*range(10, 16))
    compile_blocks(row, kept)
    outputs = []
    with torch._dynamo.config.patch(recompile_limit=3), caplog.at_level("WARNING", logger="easel"):
        assert num_new(lambda: outputs.append(row(torch.zeros(2)))) == 3
        assert num_new(lambda: outputs.append(row(torch.ones(2)))) == 0
    assert [output.tolist() for output in outputs] == [[75.0, 75.0], [76.0, 76.0]]
    assert sum("kinds of passes" in record.getMessage() for record in caplog.records) == 1


def test_a_compiler_that_fails_is_one_sentence():
    def broken(graph, examples):
        raise RuntimeError("no compiler for this machine\nand a long trace")

    row = Row(1)
    (block,) = compile_blocks(row, broken)
    with pytest.raises(EnvironmentFault) as caught:
        row(torch.zeros(2))
    message = str(caught.value)
    assert "(RuntimeError: no compiler for this machine)" in message and "Leave --torch_compile out" in message
    assert "\n" not in message
    block.is_on = False
    assert row(torch.zeros(2)).tolist() == [1.0, 1.0]


def test_no_memory_is_no_fault_of_the_compiler():
    def full(graph, examples):
        def run(*inputs):
            raise torch.OutOfMemoryError("out of memory")

        return run

    row = Row(1)
    compile_blocks(row, full)
    with pytest.raises(torch.OutOfMemoryError):
        row(torch.zeros(2))


def test_backends_that_torch_does_not_have_are_refused():
    with pytest.raises(OptionError, match=r"--dynamo_backend tensort: torch .* one of eager, aot_eager, inductor,"):
        check_compiler(ComputeOptions(torch_compile=True, dynamo_backend="tensort"), MemoryOptions())
    check_compiler(ComputeOptions(dynamo_backend="tensort"), MemoryOptions())
    check_compiler(ComputeOptions(torch_compile=True), MemoryOptions(blocks_to_swap=3))
    with pytest.raises(OptionError, match="cudagraphs cannot be used with --blocks_to_swap"):
        check_compiler(ComputeOptions(torch_compile=True, dynamo_backend="cudagraphs"), MemoryOptions(blocks_to_swap=3))


def test_fp8_is_compiled_for_gpus_that_know_it():
    compute, fp8 = ComputeOptions(torch_compile=True), MemoryOptions(fp8_base=True)
    for capability in ((8, 9), (9, 0), (12, 0), None):
        check_compiler(compute, fp8, lambda capability=capability: capability)
    check_compiler(compute, MemoryOptions(base_weights_dtype="int8"), lambda: (8, 6))
    with pytest.raises(OptionError, match=r"\(compute capability 8\.6\)\. Use --base_weights_dtype int8"):
        check_compiler(compute, fp8, lambda: (8, 6))
