"""The kernels of a compiled step, counted by kind: what a step does besides its products.

A GPU starts every kernel of a loop's body anew at each step, which takes longer than the arithmetic
of a small network.  XLA's text of a compiled program names them: each instruction of the body that
computes is one, a fusion included.  On a CPU the same instructions are the compiled loop's calls.
"""

import re
from collections import Counter
from typing import NamedTuple

PRODUCT, GATHER, UPDATE, SUM, ENTRYWISE, COPY = KINDS = (
    "matrix products",
    "rows gathered",
    "results for the next step",
    "sums and maxima",
    "entry by entry",
    "copies",
)
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
LIBRARY = re.compile(r'custom_call_target="[^"]*(gemm|matmul)')  # cuBLAS, oneDNN


class Instruction(NamedTuple):
    """A line of a computation: name = type opcode(operands), ..."""

    name: str
    opcode: str
    rest: str  # operands and attributes
    root: bool


def of_a_step(text):
    """The number of kernels of each kind in the body of a program's loop.

    text: of an optimised program with a loop, as ``compiled.as_text()`` gives it; of several loops
        the one whose body has the most kernels counts.

    The kinds are told by what an instruction, or the computation that it calls, has in it: a
    product, whatever else; else a gather of rows; else whether the next step takes its result, as
    parameters and optimiser states do; else a reduction; else a copy or arithmetic entry by entry.
    Raises ValueError for a text without a loop.
    """
    computations = parse(text)
    bodies = re.findall(r" while\(.*?\bbody=%?([\w.-]+)", text)
    if not bodies:
        raise ValueError("text: got a program without a loop, expected one with a while")
    return max((in_body(computations, body) for body in bodies), key=Counter.total)


def in_body(computations, body):
    """The kernels of one computation, by kind."""
    instructions = computations[body]
    carried = set()
    for each in reversed(instructions):  # what the root holds, and what is only passed on to it
        if each.root or (each.name in carried and each.opcode in FREE):
            carried.update(re.findall(r"%([\w.-]+)", each.rest))
    return Counter(
        kind(computations, each, carried)
        for each in instructions
        if each.opcode not in FREE and not each.opcode.endswith("-done")
    )


def kind(computations, instruction, carried):
    """The kind of one kernel."""
    within = opcodes(computations, instruction)
    if within & {"dot", "convolution"} or LIBRARY.search(instruction.rest):
        return PRODUCT
    if "gather" in within:
        return GATHER
    done = re.sub(r"-start\b", "-done", instruction.name)  # an asynchronous kernel's result
    if {instruction.name, done} & carried and instruction.opcode != "copy":
        return UPDATE
    if "reduce" in within:
        return SUM
    return COPY if within <= {"copy", "copy-start"} else ENTRYWISE


def opcodes(computations, instruction):
    """All opcodes of an instruction: its own, or those of the computation that it calls."""
    called = re.search(r"\b(?:calls|to_apply)=%?([\w.-]+)", instruction.rest)
    if called is None or instruction.opcode == "reduce":  # which calls the addition of two numbers
        return {instruction.opcode}
    return set().union(*(opcodes(computations, each) for each in computations[called[1]]))


def parse(text):
    """The instructions of each computation, by its name."""
    computations, current = {}, []
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            current = computations.setdefault(head[1], [])
        elif found := re.match(r"\s+(ROOT )?%?([\w.-]+) = .*?(?<=\s)([a-z][a-z0-9-]*)\((.*)", line):
            current.append(Instruction(found[2], found[3], found[4], found[1] is not None))
    return computations
