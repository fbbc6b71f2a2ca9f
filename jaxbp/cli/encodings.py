"""Encodings: what a terminal's cannot write is written in ASCII, x*z for x·z."""

import codecs
import re
import unicodedata

#: the name of the error handler, as in ``sys.stdout.reconfigure(errors=IN_ASCII)``
IN_ASCII = "jaxbp.in_ascii"

# fmt: off
_SYMBOLS = dict(zip("·⊙×−±√∂Σ‖→≤≥≠≈∞∇━–—’ᵀ", [
    "*", "*", "x", "-", "+-", "sqrt", "d", "sum", "||", "->", "<=", ">=", "!=", "~", "inf", "grad ",
    "-", "-", "-", "'", "^T",
], strict=True))
# fmt: on
_PARTS = {0x2212: "-", 0x2044: "/", 0x302: "_hat", 0x303: "_tilde", 0x304: "_bar"}


def in_ascii(text: str) -> str:
    """Write a text in ASCII: R^2 for R², delta^(2) for δ⁽²⁾, and a code for what has no such form.

    >>> in_ascii("gw⁽¹⁾ = δ⁽¹⁾·xᵀ, 2²·3 ≤ 12")
    'gw^(1) = delta^(1)*x^T, 2^2*3 <= 12'
    >>> in_ascii("½·(ŷ - y), ä")
    '1/2*(y_hat - y), \\\\xe4'
    """
    written, raised = "", False
    for letter in text:
        was_raised, raised = raised, unicodedata.decomposition(letter).startswith("<super>")
        greek = re.fullmatch(r"GREEK \w+ LETTER (?:FINAL )?(\w+)", unicodedata.name(letter, ""))
        if letter in _SYMBOLS:
            written += _SYMBOLS[letter]
        elif greek:
            written += greek[1].lower()
        else:
            plain = unicodedata.normalize("NFKD", letter).translate(_PARTS)  # ŷ is y and its hat
            written += "^" if raised and not was_raised else ""
            written += plain if plain.isascii() else letter.encode("unicode_escape").decode()
    return written


def _handler(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


codecs.register_error(IN_ASCII, _handler)
