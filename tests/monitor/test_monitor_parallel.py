"""The monitor on several processes: one record, the numbers of the whole, the same training."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from watched import EVERYTHING, records, watch

import warmfree
from optim.sharded import CLASSES, VOCABULARY, make_transformer, spread, whole
from processes import spawn

OPTIMIZERS = {"AdamW": torch.optim.AdamW, "AdamW2": warmfree.AdamW2}
CASES = [(way, name) for way in ("ddp", "fsdp", "tp") for name in OPTIMIZERS]


def step_of(model, optimizer, number, *, rank=0, size=1):
    """Each rank sees its part of the batch."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(VOCABULARY, (4, 6), generator=generator).chunk(size)[rank]
    optimizer.zero_grad()
    loss = F.cross_entropy(model(tokens).flatten(0, 1), (tokens.roll(1, 1) % CLASSES).flatten())
    loss.backward()
    optimizer.step()
    return loss.item()


def run(way, name, folder, *, rank=0, size=1, watched=True):
    model = make_transformer()
    torch.manual_seed(0)
    model = spread(model, way)
    optimizer = OPTIMIZERS[name](model.parameters(), lr=0.01, weight_decay=0.1)
    probes = [probe for probe in EVERYTHING if probe != "microbatches" or way == "ddp"]
    if not watched:
        for number in range(4):
            step_of(model, optimizer, number, rank=rank, size=size)
        return whole(model), None
    with watch(model, optimizer, folder, probes=probes, batch_size=4) as monitor:
        for number in range(4):
            monitor.log(step_of(model, optimizer, number, rank=rank, size=size))
    return whole(model), monitor.latest


def work(rank, root):
    for way, name in CASES:
        # Under tensor parallelism all see the whole batch.
        place, size = (0, 1) if way == "tp" else (rank, dist.get_world_size())
        folder = Path(root, f"{way}-{name}")
        bare, _ = run(way, name, folder, rank=place, size=size, watched=False)
        seen, latest = run(way, name, folder, rank=place, size=size)
        for key in bare:
            assert torch.equal(bare[key], seen[key]), f"{key} differs when watched, {way}, {name}"
        if rank == 0:
            torch.save(latest, folder / "latest.pt")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    spawn(work, 2, str(folder))
    return folder


@pytest.mark.parametrize(("way", "name"), CASES)
def test_many_processes_measure_what_one_does(way, name, root, tmp_path):
    folder = root / f"{way}-{name}"
    found = torch.load(folder / "latest.pt")
    _, expected = run("none", name, tmp_path)
    assert not records(folder, "notice")
    assert len(records(folder, "start")) == 1
    assert [record["step"] for record in records(folder, "step")] == list(range(4))
    same = ["update_l2", "update_angle", "update_angle_tensor", "grad_norm", "weight_norm", "update_relative"]
    same += ["factor"] if way == "ddp" else ["factor", "batch_snr"]  # two ranks tell more of noise than one
    for quantity in same:
        assert set(found.get(quantity, {})) == set(expected.get(quantity, {})), quantity
        for layer, value in expected.get(quantity, {}).items():
            if not math.isnan(value):
                assert found[quantity][layer] == pytest.approx(value, rel=2e-3, abs=1e-6), (quantity, layer)
    for layer, sigma in expected["sigma_weight"].items():
        assert found["sigma_weight"][layer] == pytest.approx(sigma, rel=0.02)
    assert found["rrc"].keys() == expected["rrc"].keys()
