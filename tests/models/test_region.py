"""What regions may do must not change what they compute."""

import functools
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from encoder_cases import batch_of, config_of, masks_of, randomised
from torch import Tensor, nn

from selfdistill.config import RunConfig
from selfdistill.models.conv import ConvStack
from selfdistill.models.region import Region, compilations, prepare_regions
from selfdistill.objective.data2vec import Data2Vec
from selfdistill.types import Batch

Make = Callable[..., RunConfig]
CHANCE = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "drop_path": 0.1}
DECODER = {"width": 8, "groups": 4, "layers": 2, "kernel": 3}
CASES = ("audio", "image, relative", "text")
ONE_BLOCK: dict[str, Any] = {
    "model": CHANCE | {"depth": 1},
    "objective": {"average_top_k_layers": 1},
}
"""And one of the modality's own: each block more is compiled once more, which takes seconds."""


def build(case: str, strategy: str, tiny_config: Make, **more: Any) -> Data2Vec:
    changes = {"model": CHANCE, "decoder": DECODER, "encoder": {"prenet_depth": 1}, **more}
    torch.manual_seed(0)
    return randomised(Data2Vec(config_of(case, tiny_config, strategy=strategy, **changes)))


def gradients(model: Data2Vec) -> dict[str, Tensor]:
    (name,) = model.parts
    torch.manual_seed(5)
    model({name: batch_of(name, num_masks=2)})[name].loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def regions_of(module: nn.Module) -> list[Region]:
    return [part for part in module.modules() if isinstance(part, Region)]


@pytest.mark.parametrize("strategy", ["dense", "visible"])
@pytest.mark.parametrize("case", CASES)
def test_recomputing_changes_no_gradient_and_no_name(
    case: str, strategy: str, tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, thrifty = (build(case, strategy, tiny_config) for _ in range(2))
    prepare_regions(thrifty, recompute=True, compiled=False)
    assert thrifty.state_dict().keys() == plain.state_dict().keys()
    wanted = gradients(plain)
    times = Counter[Region]()
    for kind in {type(region) for region in regions_of(thrifty)}:

        def counted(self: Region, *inputs: Any, compute: Any = kind.compute) -> Any:
            times[self] += 1
            return compute(self, *inputs)

        monkeypatch.setattr(kind, "compute", counted)
    found = gradients(thrifty)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    students = {*regions_of(thrifty)} - {*regions_of(thrifty.teacher)}
    assert len(students) >= 4
    assert {times[region] for region in students} == {2}
    assert {times[region] for region in regions_of(thrifty.teacher)} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiling_changes_no_gradient_and_no_name(
    case: str, tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compiled = (build(case, "dense", tiny_config, **ONE_BLOCK) for _ in range(2))
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch.compiler.reset()  # it counts what other tests had compiled
    prepare_regions(compiled, recompute=True, compiled=True)
    wanted, found = gradients(plain), gradients(compiled)
    assert len(graphs) >= 2
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=2)  # few for one block, as 8 are for several
@pytest.mark.parametrize("strategy", ["dense", "visible"])
def test_lengths_that_vary_are_not_compiled_one_by_one(
    strategy: str, tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch.compiler.reset()
    model = build("text", strategy, tiny_config, **ONE_BLOCK, encoder={"prenet_depth": 0})
    prepare_regions(model, recompute=False, compiled=True)
    before, counts = compilations(), []
    for number in range(24):
        lengths = [24 - number // 2, 24 - number // 2 - number % 2, *[6] * (number % 2 * 2)]
        inputs = torch.randint(5, 64, (len(lengths), lengths[0]))
        padded = torch.tensor(lengths) if number % 2 else None
        batch = Batch(inputs, padded, masks_of(lengths, num_masks=2, seed=number))
        model({"text": batch})["text"].loss.backward()
        counts.append(compilations() - before)
    assert counts[11] > 0
    assert counts[-1] == counts[11]
    assert not torch._dynamo.utils.counters["unimplemented"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler here")
def test_what_is_really_compiled() -> None:
    torch.manual_seed(0)
    stack = ConvStack([4, 4], kernel=3, groups=2, residual=True)
    x = torch.randn(2, 7, 4)
    wanted = stack(x)
    prepare_regions(stack, recompute=False, compiled=True)
    torch.testing.assert_close(stack(x), wanted)
