"""The ``warmfree`` command: parse, call, print."""

import importlib.util
import shlex
import sys
from collections.abc import Sequence

__all__ = ["main"]

_NEEDED = ("tyro", "rich", "matplotlib")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit status: 0, 1 when a run failed, 2 for bad input, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        from warmfree import __version__

        print(f"warmfree {__version__}")
        return 0
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f"the command needs {', '.join(missing)}; run: pip install 'warmfree[lab]'", status=2)
    import tyro

    from warmfree.lab.commands import COMMANDS
    from warmfree.lab.interrupt import Interrupted
    from warmfree.lab.workers import JobFailedError

    try:
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="warmfree",
            description="Train transformers without learning-rate warmup, and see what removing it costs.",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        command(command=shlex.join(["warmfree", *arguments]))
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        return _fail(str(error), status=2)
    except (JobFailedError, OSError) as error:
        return _fail(str(error), status=1)
    except Interrupted as error:
        return _fail(str(error), status=130)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to resume", status=130)
    return 0


def _fail(message: str, *, status: int) -> int:
    print(f"warmfree: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
