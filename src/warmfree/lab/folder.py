"""The results folder of a comparison: one configuration, one process at a time, cells added but never mixed."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warmfree.lab.cells import Cell
from warmfree.lab.lock import LockedError, exclusive
from warmfree.record import read_json, write_json

__all__ = ["Grid", "ResultsFolder"]

FORMAT = 1
SWEEP = "sweep.json"


@dataclass(kw_only=True, slots=True)
class Grid:
    """Which cells a comparison has.

    Attributes:
        lrs: learning rates by method name.
        seeds: the seeds of every one.
    """

    lrs: dict[str, tuple[float, ...]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()

    def cells(self) -> list[Cell]:
        """Return the cells, one seed after the other, so that an interrupted comparison has whole seeds.

        Example:
            >>> [cell.name for cell in Grid(lrs={"adamw": (1e-3, 2e-3)}, seeds=(0,)).cells()]
            ['adamw-lr0.001-seed0', 'adamw-lr0.002-seed0']
        """
        return [Cell(name, lr, seed) for seed in self.seeds for name, lrs in self.lrs.items() for lr in lrs]

    def merged(self, other: "Grid") -> "Grid":
        """Return a grid with the methods, learning rates and seeds of both."""
        names = [*self.lrs, *(name for name in other.lrs if name not in self.lrs)]
        lrs = {name: tuple(sorted({*self.lrs.get(name, ()), *other.lrs.get(name, ())})) for name in names}
        return Grid(lrs=lrs, seeds=tuple(sorted({*self.seeds, *other.seeds})))


class ResultsFolder:
    """A folder with ``sweep.json`` (what is compared), ``cells/`` and, at the end, the results.

    Args:
        path: the folder.
        config: everything that decides the numbers of a cell, as JSON values; ``methods`` in it maps a
            method's name to its settings, and may gain methods.
    """

    def __init__(self, path: Path, *, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config

    def cell(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.path / "cells" / cell.name

    def read_grid(self) -> Grid:
        """Return the grid that the folder holds, empty when it holds none, and check that it may be extended.

        Raises:
            ValueError: the folder holds something else, or a comparison of another configuration.
        """
        file = self.path / SWEEP
        advice = "choose another folder with --out, or delete this one"
        try:
            sweep = read_json(file)
        except (FileNotFoundError, NotADirectoryError):
            self._check_is_empty()
            return Grid()
        except ValueError as error:
            raise ValueError(f"{error}; {advice}") from None
        whole = isinstance(sweep, dict) and {"config", "grid"} <= sweep.keys()
        if not whole or sweep.get("format") != FORMAT:
            raise ValueError(f"{file} was not written by this version of warmfree; {advice}")
        differences = list(_differences(sweep["config"], self.config))
        if differences:
            raise ValueError(f"{self.path} holds another comparison ({'; '.join(differences)}); {advice}")
        return Grid(
            lrs={name: tuple(lrs) for name, lrs in sweep["grid"]["lrs"].items()},
            seeds=tuple(sweep["grid"]["seeds"]),
        )

    @contextlib.contextmanager
    def opened(self, grid: Grid) -> Iterator[Grid]:
        """Create or extend the folder, and keep other processes out while the block runs.

        Args:
            grid: the cells to add to those that the folder has.

        Yields:
            All cells of the folder.

        Raises:
            ValueError: the folder cannot be written to, is in use, or holds something else.
        """
        with contextlib.ExitStack() as stack:
            try:
                if self.path.exists():
                    self.read_grid()  # somebody else's folder is refused before anything is written into it
                (self.path / "cells").mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive(self.path / ".lock"))
                merged = self.read_grid().merged(grid)
                methods = self._stored_methods() | self.config["methods"]
                sweep = {
                    "format": FORMAT,
                    "config": {**self.config, "methods": methods},
                    "grid": {"lrs": merged.lrs, "seeds": merged.seeds},
                }
                write_json(self.path / SWEEP, sweep)
            except LockedError as error:
                raise ValueError(
                    f"another comparison is running in {self.path} ({error}); wait for it, or choose another --out"
                ) from None
            except OSError as error:
                raise ValueError(
                    f"cannot write results to {self.path} ({error.strerror}); choose another folder with --out"
                ) from None
            yield merged

    def _stored_methods(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            stored: dict[str, Any] = read_json(self.path / SWEEP)["config"]["methods"]
            return stored
        return {}

    def _check_is_empty(self) -> None:
        if self.path.is_dir() and any(
            not name.startswith(".") and name != "cells" for name in os.listdir(self.path)
        ):
            raise ValueError(
                f"{self.path} is not empty and holds no comparison; choose a new or empty folder with --out"
            )


def _differences(stored: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield each key whose value differs; a method that only one side knows is no difference."""
    for key in [*stored, *(key for key in asked if key not in stored)]:
        name = f"{prefix}{key}"
        if isinstance(stored.get(key), dict) and isinstance(asked.get(key), dict):
            yield from _differences(stored[key], asked[key], f"{name}.")
        elif stored.get(key) != asked.get(key) and not (
            prefix == "methods." and (key not in stored or key not in asked)
        ):
            yield f"{name} is {stored.get(key)!r} there, {asked.get(key)!r} asked"
