"""The command line: ``jaxbp train``, ``predict``, ``evaluate``, ``check`` and the others.

Every heavy import and every screen lives in this folder; the library knows nothing of it.  Read
``app``, which picks the command; ``options``, what the user is asked; ``plan``, what is decided
from it; ``train``, the main command, with its ``gradient_check``, ``run_record`` and
``run_folder``; then, as needed, the other commands (``diagnose``, ``predict``, ``evaluate``,
``runs``, ``check`` with its ``users_function``, ``explain`` with its ``expressions`` and their
``functions``) and what they use: ``scores`` and ``score_tables``, ``files``, ``interrupts``,
``pictures``, ``pages`` with the ``report`` of a run, ``compile_time`` and
``compilation_cache``.
"""

from jaxbp.cli.app import main

__all__ = ["main"]
