"""Evidence and rehearsals made by hand."""

import math

from warmfree.advice import Evidence, FirstStep, Noise, Rehearsed
from warmfree.schedule.critical import CriticalLR, Search, Trial


def search(lr, *, tried=(1e-3, 1e-2), slope=-1.0, outcome=None):
    outcome = outcome or ("found" if lr is not None else "none")
    return Search(
        outcome=outcome,
        lr=lr,
        low=None if outcome == "uphill" else tried[0],
        high=None if outcome == "none" else tried[-1],
        initial_loss=2.0,
        slope=slope,
        trials=tuple(Trial(lr=one, loss=1.9) for one in tried),
        forward_passes=4,
    )


def critical(lr, *, target=1e-3, outcome=None, searches=None):
    outcome = outcome or ("found" if lr is not None else "none")
    searches = (search(lr, outcome=outcome),) if searches is None else searches
    return CriticalLR(
        outcome=outcome,
        lr=lr,
        low=None if outcome == "uphill" else 1e-3,
        high=None if outcome == "none" else 1e-2,
        searches=searches,
        target=target,
        forward_passes=4,
        backward_passes=1,
        seconds=0.1,
    )


def first_step(change=0.1, *, update_rms=1.0, predicted_rms=0.229, layer="blocks.0.mlp"):
    return FirstStep(
        update_rms=update_rms,
        predicted_rms=predicted_rms,
        angle=0.1,
        predicted_angle=None,
        representation_change=change,
        layer=layer,
        spectral_ratio=0.3,
        spectral_layer="blocks.0.mlp.weight",
    )


def evidence(found=None, *, first=None, sharpness=None, noise=None, rehearsal=None, missing=()):
    return Evidence(
        critical=critical(2e-3) if found is None else found,
        sharpness=sharpness,
        first_step=first,
        noise=noise,
        rehearsal=rehearsal,
        missing=tuple(missing),
    )


def noise(critical_batch_size, batch_size=16):
    return Noise(
        signal_to_noise=1 / critical_batch_size if critical_batch_size else math.inf,
        critical_batch_size=critical_batch_size,
        batch_size=batch_size,
    )


def rehearsed(loss, warmup=0, *, optimizer="AdamW"):
    return Rehearsed(optimizer=optimizer, warmup=warmup, start=0.0, loss=loss, losses=(2.2, loss))
