"""Checkpoints through torch.distributed.checkpoint: the same layout, other numbers of processes, none at all."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from sharded import BUILD, groups_of, make_transformer, spread, train, whole
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict, set_state_dict

from processes import spawn


def make(name, way):
    model = spread(make_transformer(), way)
    return model, BUILD[name](groups_of(model))


def save(model, optimizer, folder):
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)


def load(model, optimizer, folder):
    with torch.no_grad():  # what is loaded must not be there already
        for parameter in model.parameters():
            parameter.zero_()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def begin(rank, folder, way):
    """Four steps, a checkpoint, two more steps; and the same two after a load in the same layout."""
    for name in BUILD:
        model, optimizer = make(name, way)
        # torch would make a step with zero gradients here, were there no state yet.
        get_optimizer_state_dict(model, optimizer)
        train(model, optimizer, range(4))
        save(model, optimizer, f"{folder}/{name}-4")
        train(model, optimizer, range(4, 6))
        again, loaded = make(name, way)
        load(again, loaded, f"{folder}/{name}-4")
        train(again, loaded, range(4, 6))
        expected, found = whole(model), whole(again)
        assert all(torch.equal(expected[key], found[key]) for key in expected), name


def go_on(rank, folder, way):
    for name in BUILD:
        model, optimizer = make(name, way)
        load(model, optimizer, f"{folder}/{name}-4")
        train(model, optimizer, range(4, 6))
        save(model, optimizer, f"{folder}/{name}-6")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("ways", [("fsdp", "hsdp"), ("fsdp+tp", "fsdp+tp")])
def test_two_processes_then_four_then_one(ways, tmp_path):
    spawn(begin, 2, str(tmp_path), ways[0])
    spawn(go_on, 4, str(tmp_path), ways[1])
    for name in BUILD:
        reference, undisturbed = make(name, "none")
        train(reference, undisturbed, range(8))
        model, optimizer = make(name, "none")
        load(model, optimizer, f"{tmp_path}/{name}-6")
        train(model, optimizer, range(6, 8))
        expected, found = whole(reference), whole(model)
        for key, value in expected.items():
            assert (found[key] - value).norm() <= 1e-5 * value.norm(), (name, key)
