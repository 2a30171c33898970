"""Functions of the user's: found, called, and told what is wrong with what they return."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from warmfree.lab.advise.source import Source
from warmfree.lab.advise.user_function import function_source

GOOD = """
import torch
from torch import nn

def make():
    model = nn.Linear(3, 1)
    batches = [torch.randn(6, 3) for _ in range(4)]
    return model, lambda model, x: model(x).square().mean(), batches, torch.optim.SGD(model.parameters(), lr=0.1)
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("mine"):
            del sys.modules[name]


def source(body: str, function: str = "make", **options: Any) -> Source:
    Path("mine.py").write_text(body)
    return function_source(f"mine.py:{function}", **({"steps": 10, "batch_size": None, "seed": 0} | options))


def returning(expression: str) -> str:
    return (
        GOOD.replace("def make():", "def good():")
        + f"\ndef make():\n    m, l, b, o = good()\n    return {expression}\n"
    )


def test_by_file_and_by_module() -> None:
    made = source(GOOD)
    assert (made.title, made.steps, made.batch_size) == ("Linear of mine.py:make", 10, 6)
    assert torch.is_tensor(made.loss_fn(made.model, made.batches[0]))  # type: ignore[index]
    Path("mine_too.py").write_text(GOOD)
    Path("mine_package").mkdir()
    Path("mine_package", "__init__.py").touch()
    Path("mine_package", "train.py").write_text("from mine_too import make\n")
    again = function_source("mine_package.train:make", steps=3, batch_size=2, seed=0)
    assert again.batch_size == 2
    assert torch.equal(again.model.weight, made.model.weight)  # the seed is set before the call
    other = function_source("mine_package.train:make", steps=3, batch_size=2, seed=1)
    assert not torch.equal(other.model.weight, made.model.weight)


def test_a_file_can_import_what_is_beside_it() -> None:
    Path("there").mkdir()
    Path("there", "mine_sizes.py").write_text("SIZE = 7\n")
    Path("there", "mine_job.py").write_text(
        GOOD.replace("randn(6", "randn(SIZE").replace(
            "import torch\n", "import torch\nfrom mine_sizes import SIZE\n", 1
        )
    )
    assert function_source("there/mine_job.py:make", steps=1, batch_size=None, seed=0).batch_size == 7


def test_the_batch_size_of_a_loader_that_shuffles_leaves_its_order_alone() -> None:
    body = GOOD.replace(
        "batches = [torch.randn(6, 3) for _ in range(4)]",
        "data = torch.utils.data.TensorDataset(torch.arange(12.).reshape(4, 3))\n"
        "    batches = torch.utils.data.DataLoader(data, 2, shuffle=True, generator=torch.Generator().manual_seed(1))",
    )
    made = source(body)
    assert made.batch_size == 2
    generator = made.batches.generator  # type: ignore[attr-defined]
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(1).get_state())


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("None", r"must return \(model, loss_fn, batches, optimizer\), it returned None$"),
        ("m, o", "it returned a tuple of 2$"),
        ("{'model': m}", "it returned a dict$"),
        ("m, b, l, o", r"number 2 must be a function loss_fn\(model, batch\), it is a list$"),
        ("l, m, b, o", r"number 1 must be a torch.nn.Module, it is a function$"),
        (
            "m, l, b[0], o",
            r"number 3 must be an iterable of batches, .* it is a tensor of torch.float32 with the shape",
        ),
        ("m, l, b, m", "number 4 must be a torch.optim.Optimizer, it is a Linear$"),
        (
            "m, nn.MSELoss(), b, o",
            r"called with \(model, batch\) and must call the model itself, a module like a MSELoss",
        ),
        ("m, lambda x: x, b, o", r"loss_fn must take \(model, batch\): too many positional arguments"),
        (
            "m, l, iter(b), o",
            r"gone through more than once, which a list_iterator cannot be; return a DataLoader",
        ),
        ("m.eval(), l, b, o", r"the model is in eval mode.*call model\.train\(\)"),
        ("m, l, b, torch.optim.LBFGS(m.parameters())", "LBFGS.step needs 'closure'"),
        ("m, l, [], o", "no batch can be read: ValueError: batches is empty"),
        ("m, l, ['text'], o", r"no tensor with a first dimension in a batch \(a str\); pass --batch-size N"),
        (
            "m, l, b, torch.optim.SGD(nn.Linear(1, 1).parameters())",
            "the optimizer has none of the model's parameters",
        ),
    ],
)
def test_what_is_returned_is_explained(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^mine\.py:make.*{message}"):
        source(returning(expression))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            "lambda m, x: m(x)",
            r"must return the loss as a tensor with one number, it returned a tensor .*\(6, 1\)",
        ),
        ("lambda m, x: m(x).sum().item()", "it returned a float"),
        (
            "lambda m, x: m(x[:, :2]).sum()",
            r"loss_fn failed on the first batch: RuntimeError: .*mine\.py, line \d+\)",
        ),
    ],
)
def test_a_loss_that_fails_is_explained_at_its_first_call(loss: str, message: str) -> None:
    made = source(returning(f"m, {loss}, b, o"))
    with pytest.raises(ValueError, match=message):
        made.loss_fn(made.model, next(iter(made.batches)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def make():\n    return 1 / 0\n",
            r"mine\.py:make failed: ZeroDivisionError: division by zero \(.*mine\.py, line 2\)",
        ),
        ("def make(\n", r"mine\.py cannot be run: SyntaxError: "),
        (
            "import nowhere_at_all\n",
            r"cannot be run: ModuleNotFoundError: No module named 'nowhere_at_all' \(.*line 1\)",
        ),
        ("def makes(): pass\n", r"mine\.py has no function 'make'; did you mean 'makes'\?"),
        ("def other(): pass\n", r"has no function 'make'; it has other"),
        ("x = 1\n", r"has no function 'make'; it has no function"),
        ("make = 3\n", r"mine\.py:make must be a function, it is an int"),
        ("def make(lr): pass\n", r"is called without arguments \(missing a required argument: 'lr'\)"),
    ],
)
def test_functions_that_cannot_be_called(body: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(body)


def test_functions_that_are_not_there() -> None:
    rest = {"steps": 1, "batch_size": None, "seed": 0}
    with pytest.raises(FileNotFoundError, match=r"file not found: nowhere\.py"):
        function_source("nowhere.py:make", **rest)
    with pytest.raises(ModuleNotFoundError, match=r"no module 'nowhere\.train', neither in .* nor installed"):
        function_source("nowhere.train:make", **rest)
    Path("mine_broken.py").write_text("import nowhere_at_all\n")
    with pytest.raises(
        ValueError, match=r"mine_broken cannot be imported: ModuleNotFoundError: .*nowhere_at_all"
    ):
        function_source("mine_broken:make", **rest)
    with pytest.raises(ValueError, match="needs the length of the run: --steps N"):
        function_source("nowhere.py:make", steps=None, batch_size=None, seed=0)
    with pytest.raises(ValueError, match=r"must be module:function or path/to/file\.py:function"):
        function_source("nowhere.py:", **rest)
