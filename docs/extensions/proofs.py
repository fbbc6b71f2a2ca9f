"""``{proved}``: the tests that prove a formula, by their names, beside it; each can be opened.

Every test of tests/test_lectures.py may be named so; one that is not there is an error.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_TESTS = "../../tests/test_lectures.py"  # from a page in a folder of docs


class Proved(SphinxDirective):
    """Tests by name, a line each."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """A closed block for each test: its name, and its code."""
        found: list[nodes.Node] = []
        for name in self.content:
            found += self.parse_text_to_nodes(
                f"~~~~{{dropdown}} Proved by `{name}`\n"
                f"```{{literalinclude}} {_TESTS}\n:pyobject: {name}\n```\n~~~~\n"
            )
        return found


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("proved", Proved)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
