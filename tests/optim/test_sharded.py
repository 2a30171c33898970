"""A model spread over processes trains as the same model in one process, at a constant number of collectives."""

import pytest
import torch
import torch.distributed as dist
from sharded import BUILD, backward, groups_of, make_transformer, spread, train, whole

from processes import spawn

STEPS = 20
WAYS = {1: ["fsdp"], 2: ["fsdp", "tp", "fsdp+tp"], 4: ["fsdp", "hsdp", "tp", "fsdp+tp", "ddp"]}


def count_collectives(model, optimizer):
    from torch.distributed.tensor.debug import CommDebugMode

    with CommDebugMode() as counter:
        optimizer.step()
    return {str(kind): number for kind, number in counter.get_comm_counts().items() if number}


def run_all(rank, folder, ways, dtype):
    results = {}
    for way in ways:
        for name, build in BUILD.items():
            model = spread(make_transformer(dtype=dtype), way)
            optimizer = build(groups_of(model))
            train(model, optimizer, range(STEPS))
            counts = {}
            for layers in (1, 3) if dist.get_world_size() == 2 else ():
                other = spread(make_transformer(layers, dtype), way)
                stepper = build(groups_of(other))
                train(other, stepper, range(2))  # the first steps iterate longer
                backward(other, 2)
                counts[layers] = count_collectives(other, stepper)
            vectors = [
                value
                for entries in optimizer.state.values()
                for key, value in entries.items()
                if key in ("weight_vectors", "update_vectors")
            ]
            results[way, name] = whole(model), counts, optimizer.step_report.fetch(), vectors
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def unsharded():
    results = {}
    for name, build in BUILD.items():
        model = make_transformer()
        optimizer = build(groups_of(model))
        train(model, optimizer, range(STEPS))
        results[name] = whole(model), optimizer.step_report.fetch()
    return results


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("size", WAYS)
def test_spread_over_processes_it_trains_as_in_one(size, tmp_path, unsharded):
    spawn(run_all, size, str(tmp_path), WAYS[size], torch.float32)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    for (way, name), (weights, counts, report, vectors) in ranks[0].items():
        expected, expected_report = unsharded[name]
        for key, reference in expected.items():
            error = (weights[key] - reference).norm() / reference.norm()
            assert error <= 1e-5, (way, name, key, error)
        assert report.keys() == expected_report.keys()
        for parameter, values in expected_report.items():
            for quantity in values.keys() - {"angle"}:  # of the neurons that are here
                assert report[parameter][quantity] == pytest.approx(values[quantity], rel=2e-3, abs=1e-6), (
                    way,
                    name,
                    parameter,
                    quantity,
                )
        if counts:
            assert counts[1] == counts[3], (way, name)
            assert counts[3].keys() == {"c10d.allreduce_"}, (way, name, counts)  # no weight is ever gathered
            if way == "fsdp" and name in ("GIAdamW", "LionA", "LionAR", "RotationalAdamW"):
                # The agreement on non-finite numbers alone: norms of neurons whose rows are whole need nothing.
                assert sum(counts[3].values()) == 1, (name, counts)
        for other in ranks[1:]:
            for mine, theirs in zip(vectors, other[way, name][3], strict=True):
                assert torch.equal(mine, theirs)
