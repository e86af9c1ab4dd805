"""Finding and reading the configuration file."""

from __future__ import annotations

from pathlib import Path

from sdshim.core.config import DEFAULT_PATH, Config, parse
from sdshim.core.errors import InvalidArgument


def load_config(path: str | None) -> Config:
    """The configuration; a missing default file means defaults, a missing named file is an error.

    Raises InvalidArgument with every fault of the file.
    """
    file = Path(path or DEFAULT_PATH)
    if not file.exists():
        if path:
            raise InvalidArgument(f"configuration file {path} does not exist")
        return Config()
    import tomllib  # 11 ms, and most nodes have no file

    try:
        document = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{file} cannot be read", cause=str(error)) from error
    return parse(document, str(file))
