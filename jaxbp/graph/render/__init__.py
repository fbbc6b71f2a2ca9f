"""The pictures of a graph: read ``text``, the tables of a terminal, then ``latex``, the same as
equations, ``mermaid_dot``, for programs that draw, and ``web``, the page in a browser, with its
template ``page.html`` and ``layout``, which places its boxes.
"""
