"""Ce que partagent les outils qui se lancent par `python -m tools.NOM`."""

import sys
from collections.abc import Callable
from typing import NoReturn

from minidalle.errors import MinidalleError


def launch(main: Callable[..., int | None], *arguments: object) -> NoReturn:
    """Lance un outil et finit le programme ; une erreur prévue se dit en une phrase, sans trace."""
    try:
        raise SystemExit(main(*arguments))
    except MinidalleError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
