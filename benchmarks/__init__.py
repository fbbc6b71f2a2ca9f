"""Benchmarks: every figure in the README and its pages comes from a command in this folder.

Read ``protocol`` first (how to time, and the command line that all share) and ``problems`` (the
networks and batches), then the benchmark of your question: ``manual_vs_auto``, ``training`` and
``latency`` (with ``peers``), ``search``, ``limit`` (with ``kernels``), ``scaling``, ``checkers``
(with ``asking``, ``gradient_bugs`` and ``reported_bugs``), ``error_bars``, ``functions``,
``per_example`` or ``curvature``.
``python -m benchmarks`` runs all, ``accelerator`` those that depend on the device, both within
minutes; ``report`` and ``pictures`` make a page and pictures of the results.
"""
