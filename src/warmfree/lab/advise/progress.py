"""What is being measured, while it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

__all__ = ["progress"]


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str], None]]:
    """Show messages on one live line in a terminal, else a line each.

    Args:
        console: where to; standard error, so that results can be piped.

    Returns:
        Yields what to call with each message.
    """
    if console.is_terminal:
        with console.status("") as status:
            yield lambda message: status.update(Text(message))
    else:
        yield lambda message: console.print(Text(message), soft_wrap=True)
