"""Shards that fit nothing: sections cut by shards, uneven columns, convolutions, mixed groups; and what goes wrong."""

import pytest
import torch
import torch.distributed as dist
from sharded import BUILD, make_transformer, spread
from torch import nn

from processes import spawn
from warmfree import AdamW2, LionAR

SHAPES = {
    "fused": (15, 6),
    "wide": (4, 11),
    "conv": (5, 3, 2, 2),
    "transposed": (6, 9),
    "plain": (7, 5),
    "bias": (9,),
}


def tensors(seed, *, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def make_groups(parameters):
    return [
        {"params": [parameters["fused"]], "split": 3},  # the sections of 5 rows end where no shard ends
        {"params": [parameters["transposed"]], "out_dim": 1, "split": (2, 7)},
        {"params": [parameters[name] for name in ("wide", "conv", "plain")]},
        {"params": [parameters["bias"]], "weight_decay": 0.0},
    ]


def step_all(optimizer, parameters, as_gradient, steps=8):
    for step in range(steps):
        for name, gradient in tensors(step + 1).items():
            parameters[name].grad = as_gradient(name, gradient * 10.0 ** (step % 3))
        optimizer.step()


def placements():
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    yield (4,), {name: (Shard(0),) for name in SHAPES}
    yield (4,), {name: (Shard(1 if len(shape) > 1 else 0),) for name, shape in SHAPES.items()}
    two = {
        "fused": (_StridedShard(0, split_factor=2), Shard(0)),
        "wide": (Shard(0), Shard(1)),
        "conv": (Shard(1), Shard(0)),
        "transposed": (Replicate(), Shard(1)),
        "bias": (Replicate(), Shard(0)),
    }
    yield (2, 2), two


def compare_parts(rank, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    results = []
    for shape, places in placements():
        mesh = init_device_mesh("cpu", shape)

        def shard(name, tensor, mesh=mesh, places=places):
            return (
                tensor
                if name == "plain"
                else distribute_tensor(tensor, mesh, places[name], src_data_rank=None)
            )

        for name, build in BUILD.items():
            parameters = {
                key: nn.Parameter(shard(key, value)) for key, value in tensors(0, scale=0.3).items()
            }
            optimizer = build(make_groups(parameters))
            step_all(optimizer, parameters, shard)
            full = {key: getattr(p.detach(), "full_tensor", p.detach)() for key, p in parameters.items()}
            results.append((name, str(shape), full))
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")


@pytest.mark.filterwarnings("default")
def test_parts_that_fit_no_boundary_equal_the_whole(tmp_path):
    spawn(compare_parts, 4, str(tmp_path))
    for name, mesh, found in torch.load(tmp_path / "results.pt"):
        parameters = {key: nn.Parameter(value) for key, value in tensors(0, scale=0.3).items()}
        step_all(BUILD[name](make_groups(parameters)), parameters, lambda _, gradient: gradient)
        for key, parameter in parameters.items():
            error = (found[key] - parameter.detach()).norm() / parameter.detach().norm()
            assert error <= 1e-5, (name, mesh, key, error)


def spoil_one_shard(rank, folder):
    from torch.distributed.tensor import distribute_tensor

    verdicts = []
    for way in ("fsdp", "fsdp+tp", "ddp"):
        for name in ("AdamW2", "LionAR"):
            model = spread(make_transformer(), way)
            optimizer = BUILD[name](model.parameters())
            for bad in (False, True):
                for parameter in model.parameters():
                    full = torch.ones(parameter.shape)
                    sharded = hasattr(parameter, "device_mesh")
                    parameter.grad = (
                        distribute_tensor(full, parameter.device_mesh, parameter.placements)
                        if sharded
                        else full
                    )
                first = next(iter(model.parameters()))
                before = [
                    getattr(p, "to_local", lambda p=p: p)().detach().clone() for p in model.parameters()
                ]
                if bad and (rank == 1 or way == "ddp"):
                    getattr(first.grad, "_local_tensor", first.grad)[0, 0] = float("inf")
                optimizer.step()
            after = [getattr(p, "to_local", lambda p=p: p)().detach() for p in model.parameters()]
            same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            verdicts.append((way, name, optimizer.skipped_steps, optimizer.step_report.skipped, same))
    torch.save(verdicts, f"{folder}/{rank}.pt")


@pytest.mark.filterwarnings("default")
def test_an_infinite_gradient_in_one_shard_stops_all_processes(tmp_path):
    spawn(spoil_one_shard, 4, str(tmp_path))
    for rank in range(4):
        for way, name, skipped, reported, same in torch.load(tmp_path / f"{rank}.pt"):
            assert (skipped, reported, same) == (1, True, True), (rank, way, name)


def refuse(rank, folder):
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    weight = distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)])

    with pytest.raises(TypeError, match="sharded or replicated"):
        AdamW2([nn.Parameter(DTensor.from_local(torch.ones(3, 4), mesh, [Partial()]))])
    foreign = DeviceMesh("cpu", [0])
    if rank == 1:
        with pytest.raises(ValueError, match="not part of"):
            AdamW2([nn.Parameter(DTensor.from_local(torch.ones(3, 4), foreign, [Shard(0)]))])

    # Sharded anew behind the optimizer's back.
    parameter = nn.Parameter(weight.clone())
    optimizer = AdamW2([parameter])
    torch.utils.swap_tensors(parameter, nn.Parameter(weight.redistribute(placements=[Replicate()])))
    parameter.grad = torch.ones_like(parameter)
    before = parameter.detach().full_tensor().clone()
    with pytest.raises(RuntimeError, match="make the optimizer"):
        optimizer.step()
    assert torch.equal(parameter.detach().full_tensor(), before)

    # fully_shard and parallelize_module put new parameters in the place of those that the optimizer has.
    model = nn.Linear(4, 6)
    optimizer = LionAR(model.parameters())
    fully_shard(model, mesh=mesh)
    model(torch.ones(2, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="shard the model first"):
        optimizer.step()

    # State of another world.
    sharded, plain = AdamW2([nn.Parameter(weight.clone())]), AdamW2([nn.Parameter(torch.ones(6, 4))])
    for target, source in ((sharded, plain), (plain, sharded)):
        with pytest.raises(ValueError, match=r"torch\.distributed\.checkpoint"):
            target.load_state_dict(source.state_dict())
    columns = AdamW2([nn.Parameter(distribute_tensor(torch.ones(6, 4), mesh, [Shard(1)]))])
    with pytest.raises(ValueError, match=r"torch\.distributed\.checkpoint"):
        columns.load_state_dict(sharded.state_dict())
    # What is a DTensor but whole here takes the compiled step.
    replicated = nn.Parameter(distribute_tensor(torch.ones(6, 4), mesh, [Replicate()]))
    optimizer = AdamW2([replicated], compile=True)
    for _ in range(3):
        replicated.grad = distribute_tensor(torch.ones(6, 4), mesh, [Replicate()])
        optimizer.step()
    assert optimizer.state[replicated]["step"] == 3

    # Plain tensors that one process alone has a gradient for, or a bad one.
    parameters = [nn.Parameter(weight.clone()), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    optimizer = AdamW2(parameters)
    for step in range(3):
        parameters[0].grad = distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)])
        parameters[1].grad = torch.ones(3) if rank == 0 else None
        parameters[2].grad = torch.full((3,), float("nan") if (rank, step) == (1, 1) else 1.0)
        optimizer.step()
    assert optimizer.skipped_steps == 1
    dist.barrier()
    torch.save(True, f"{folder}/{rank}.pt")


@pytest.mark.filterwarnings("default")
def test_what_cannot_be_stepped_is_refused(tmp_path):
    spawn(refuse, 2, str(tmp_path))
    assert all(torch.load(tmp_path / f"{rank}.pt") for rank in range(2))


def test_parameters_without_memory_are_refused():
    with pytest.raises(ValueError, match="meta device"):
        AdamW2([nn.Parameter(torch.ones(2, 2, device="meta"))])
