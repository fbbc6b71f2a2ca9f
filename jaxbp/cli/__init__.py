"""The command line: ``jaxbp train``, ``predict``, ``check``, ``diagnose`` and ``explain``.

Every heavy import and every screen lives in this folder; the library knows nothing of it.  Read
``app``, which picks the command; ``options``, what commands share; then a command's own file.
"""

from jaxbp.cli.app import main

__all__ = ["main"]
