"""The sentences, for situations made so that the right ones are known."""

import pytest
from synthetic_results import make_exact, make_results

from warmfree.report import verdict


def says(results):
    return " ".join(verdict(results))


def pair(without, with_warmup, **more):
    """AdamW and AdamW with warmup, best in the middle of the grid, with the given losses by seed."""
    worse = [9.0] * len(without)
    grid = {
        name: {1e-3: worse, 2e-3: values, 4e-3: worse}
        for name, values in {"adamw": without, "adamw-warmup": with_warmup, **more}.items()
    }
    return make_exact(grid)


def test_warmup_is_better():
    text = says(pair([2.14, 2.16], [2.00, 2.00]))
    assert "Removing the 20 % warmup costs AdamW 7.5 % (± 0.7 % over seeds)." in text
    assert "2.150 (lr 2e-3) for AdamW, no warmup against 2.000 (lr 2e-3) for AdamW, 20 % warmup." in text
    assert "upper bound" not in text


def test_warmup_is_worse():
    text = says(pair([1.90, 1.90], [2.00, 2.00]))
    assert "Removing the 20 % warmup lowers AdamW's best loss by 5.0 %" in text
    assert "costs" not in text


def test_no_difference_beyond_the_spread_is_not_called_a_cost():
    text = says(pair([1.98, 2.06], [1.97, 2.03]))
    assert "changes AdamW's best loss by +1.0 % (within the spread over seeds, ± 3.5 %)" in text
    assert "costs" not in text


def test_equal_losses():
    assert "Removing the 20 % warmup changes AdamW's best loss by 0.0 %" in says(pair([2.0, 2.0], [2.0, 2.0]))
    assert "does not change AdamW's best loss (one seed each" in says(pair([2.0], [2.0]))


def test_one_seed_claims_no_certainty():
    text = says(pair([2.2], [2.0]))
    assert "costs AdamW 10.0 % (one seed each, so the spread is unknown)" in text
    assert "Only one seed was run" in text
    assert "±" not in text


def test_a_method_with_one_seed_beside_one_with_two_has_no_spread():
    results = pair([2.2, 2.2], [2.0, 2.0])
    results["cells"] = [cell for cell in results["cells"] if (cell["method"], cell["seed"]) != ("adamw", 1)]
    assert "costs AdamW 10.0 % (too few seeds, so the spread is unknown)" in says(results)


@pytest.mark.parametrize(("loss", "words"), [(2.02, "1.0 % above"), (1.98, "1.0 % below"), (2.0, "equal to")])
def test_best_warmup_free_against_warmup(loss, words):
    text = says(pair([2.1], [2.0], liona=[2.5], lionar=[loss]))
    assert (
        f"The best of 2 warmup-free optimizers is LionAR with {loss:.3f} (lr 2e-3): {words} AdamW, 20 % warmup"
        in text
    )


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ((2.0, 2.1, 2.2), "the lowest one tried for LionAR"),
        ((2.2, 2.1, 2.0), "the highest one tried for LionAR"),
    ],
)
def test_best_at_the_edge_is_called_a_bound(losses, words):
    text = says(
        make_exact({"lionar": {lr: [loss] for lr, loss in zip((0.01, 0.03, 0.1), losses, strict=True)}})
    )
    assert words in text
    assert "the grid is too narrow there" in text
    assert "only an upper bound" in text


def test_single_learning_rate_is_called_untuned():
    text = says(make_exact({"lionar": {0.1: [2.0]}}))
    assert "Only one learning rate has a result for LionAR: not tuned" in text
    assert "span a factor" not in text


def test_robust_ranges_are_grouped_widest_first():
    wide, narrow = [2.0, 2.01, 2.02, 2.01, 2.0], [3.0, 2.05, 2.0, 2.05, 3.0]
    lrs = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
    by_method = {"adamw": narrow, "adamw2": wide, "liona": narrow}
    grid = {name: dict(zip(lrs, ([v] for v in values), strict=True)) for name, values in by_method.items()}
    assert "a factor of ×16 or more for AdamW²; ×4 for AdamW, no warmup and LionA." in says(make_exact(grid))


def test_unequal_grids_are_admitted():
    grid = {"adamw": {1e-3: [2.1], 2e-3: [2.2]}, "adamw-warmup": {1e-3: [2.1], 2e-3: [2.0], 4e-3: [2.1]}}
    assert "AdamW, 20 % warmup was given 3 learning rates and AdamW, no warmup 2: more tries" in says(
        make_exact(grid)
    )
    assert "more tries" not in says(pair([2.1], [2.0]))


def test_everything_diverged():
    assert verdict(make_exact({"adamw": {1e-3: [None, None]}, "lionar": {0.1: [None, None]}})) == [
        "Every run diverged (4 cells): try smaller learning rates."
    ]


def test_no_learning_rate_with_every_seed():
    assert verdict(make_exact({"adamw": {1e-3: [2.0, None]}})) == [
        "No learning rate finished with every seed (1 of 2 cells diverged): try smaller learning rates."
    ]


def test_nothing_ran_yet():
    results = make_results()
    results["cells"] = []
    assert verdict(results) == ["No cell has a result yet, so there is nothing to compare."]


def test_reference_that_diverged():
    text = says(make_exact({"adamw": {1e-3: [None]}, "adamw-warmup": {1e-3: [2.0]}}))
    assert "AdamW, no warmup has no learning rate at which every seed finished" in text
    assert "cannot be put in percent" in text


def test_absent_reference():
    text = says(make_exact({"lionar": {0.03: [2.1], 0.1: [2.0], 0.3: [2.1]}}))
    assert "What removing warmup costs AdamW is not measured here" in text
    assert (
        "LionAR, without warmup, reaches 2.000 (lr 0.1); there is no AdamW with warmup to hold it against"
        in text
    )


def test_no_warmup_free_optimizer():
    assert "No warmup-free optimizer was compared." in says(pair([2.1], [2.0]))
    failed = make_exact({"adamw": {1e-3: [2.0]}, "lionar": {0.1: [None]}})
    assert "No warmup-free optimizer has a learning rate at which every seed finished." in says(failed)


def test_partial_results_are_called_preliminary():
    results = pair([2.1], [2.0])
    results["cells"].pop()
    assert "1 cell has no result yet: these numbers are preliminary." in verdict(results)
    assert "preliminary" not in says(pair([2.1], [2.0]))
