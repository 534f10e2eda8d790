"""Escape what users write, such as names of variables, for reports and model cards."""

from __future__ import annotations

__all__ = ["as_latex", "as_markdown", "as_mermaid"]

MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "} | {sign: f"\\{sign}" for sign in "\\`*|$"}
)
LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "%_&$#{}"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "|": r"\textbar{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "\n": " ",
        "\r": " ",
        "é": r"\'e",
        "²": "$^2$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "·": r"$\cdot$",
        "±": r"$\pm$",
    }
)


def as_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no HTML, no formula, no link."""
    return text.translate(MARKDOWN).replace("](", "]\\(")


def as_latex(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return text.translate(LATEX)


def as_mermaid(text: str) -> str:
    """Text that a label of a Mermaid diagram, in quotes, shows as it is."""
    return "".join(sign if sign.isalnum() or sign in " _-.,()" else f"#{ord(sign)};" for sign in " ".join(text.split()))
