"""The pictures of a graph: ``text`` for a terminal, ``web`` for a browser, ``mermaid_dot``."""
