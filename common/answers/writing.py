"""Full-width characters and LaTeX → the same words plainly, for the default reading."""

import re

_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    0x3000: " ",
    0x00A0: " ",
    0x202F: " ",
    0x2009: " ",
    0x301C: "~",
    0x223C: "~",
    0x2236: ":",
    0x3001: ",",
    0x3002: ". ",
    0x2032: "'",
    0x2019: "'",
    0x2033: '"',
    0x201D: '"',
    0x201C: '"',
}
"""Full-width ASCII, spaces, tildes, and signs that look like colon, prime and quotes."""
_LATEX = (
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|boxed|textit) ?\{([^{}]{0,64})\}"), r" \1 "),
    (re.compile(r"\\(?:rightarrow|longrightarrow|to|Rightarrow)(?![A-Za-z])"), " to "),
    (re.compile(r"\\(?:leq?|leqslant|lt)(?![A-Za-z])"), " <= "),
    (re.compile(r"\\(?:approx|sim)(?![A-Za-z])"), " ~"),
    (re.compile(r"\\(?:left|right|quad|qquad|displaystyle)(?![A-Za-z])"), " "),
    (re.compile(r"\\[%,;:! ()\[\]]"), " "),
    (re.compile(r"\$"), " "),
)


def plain(text: str) -> str:
    """The same words without typesetting."""
    if not text.isascii():
        text = text.translate(_WIDE)
    if "\\" in text or "$" in text:
        for pattern, by in _LATEX:
            text = pattern.sub(by, text)
    return text
