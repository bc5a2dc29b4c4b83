"""Site Markdown as Markdown that a terminal can show: formulas as Unicode, boxes as headings."""

import re

_SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "epsilon": "ε", "eta": "η", "theta": "θ",
    "lambda": "λ", "mu": "μ", "rho": "ρ", "sigma": "σ", "omega": "ω", "Delta": "Δ", "Omega": "Ω",
    "sum": "Σ", "sqrt": "√", "cdot": "·", "times": "×", "le": "≤", "ge": "≥", "ne": "≠", "in": "∈",
    "to": "→", "dots": "…", "approx": "≈", "nabla": "∇", "quad": "  ", "qquad": "    ",
    "begin{cases}": "{ ", "end{cases}": "", "pm": "±", "infty": "∞", "Longleftrightarrow": "⟺",
    "left": "", "right": "", "displaystyle": "", "lVert": "‖", "rVert": "‖", "mid": "|",
}  # fmt: skip
_STYLED = re.compile(r"\\(?:operatorname|text|mathcal|mathbb|mathrm|vec)\*?\s*\{([^{}]*)\}")
_DROPPED = re.compile(r"\\(?:[bB]ig+[lr]?|underbrace|!)(?![a-z])")
_BOX = re.compile(r'^(?:\?\?\?\+?|!!!) +\w+(?: +"(?P<title>[^"]*)")? *$')
_ATTRIBUTES = re.compile(r"\s*\{ *[#.:][^}]*\}")


def plain_math(tex: str) -> str:
    r"""A formula as one or more lines of Unicode: \mu \frac{a}{b c} becomes μ a/(b c)."""
    text = _DROPPED.sub("", _STYLED.sub(r"\1", tex.strip()))
    text = re.sub(r"\\\\(\[[^\]]*\])?", "\n", text)
    for _ in range(4):  # fractions nest
        text = re.sub(r"\\d?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", _fraction, text)
        text = re.sub(r"\\d?frac\s*(\w)\s*(\w)", r"\1/\2", text)
        # {a} is grouping; keep it as _{a} and ^{a}, where it carries meaning.
        text = re.sub(r"([_^])\{([^{}])\}", r"\1\2", text)
        text = re.sub(r"(?<![_^\\}a-z])\{([^{}]*)\}", r"\1", text)
    for name in sorted(_SYMBOLS, key=len, reverse=True):
        end = "" if name.endswith("}") else r"(?![A-Za-z])"
        text = re.sub(r"\\" + re.escape(name) + end, _SYMBOLS[name], text)
    text = re.sub(r"\\([#%&$_{}])", r"\1", text)
    text = re.sub(r"\\[,;:!> ]", " ", text)
    text = re.sub(r"([_^])\{([^{}]*)\}", r"\1(\2)", text)
    text = text.replace("&", " ").replace("\\", "").replace("~", " ")
    lines = (re.sub(r"(?<=\S) {2,}(?=\S)", "  ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def plain_markdown(text: str, *, inside_box: bool = False) -> tuple[str, list[str], bool]:
    """Site Markdown without what only the site understands.

    Args:
        text: prose between two fences.
        inside_box: whether the prose before this one ended inside a box (??? or !!!).

    Returns:
        the Markdown, the titles of the boxes that open in it (each stands in the text as a bold
        line of its own), and whether the text ends inside a box.
    """
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"\$\$(.+?)\$\$", _display, text, flags=re.DOTALL)
    text = re.sub(r"(?<![\\$`])\$([^$\n`]+?)\$(?!\d)", lambda m: f"`{plain_math(m[1])}`", text)
    text = text.replace("\\$", "$")
    # Page links lead nowhere here; keep their words. Links to the web stay.
    text = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)
    titles, lines = [], []
    for raw in text.split("\n"):
        line = _ATTRIBUTES.sub("", raw) if raw.startswith("#") else raw
        box = _BOX.match(line)
        if box:
            titles.append(box["title"] or "Note")
            lines.append(f"**{titles[-1]}**")
            inside_box = True
            continue
        if inside_box and line.strip():
            if line.startswith("    "):
                line = line[4:]
            else:
                inside_box = False
        lines.append(line)
    return "\n".join(lines), titles, inside_box


def _fraction(match: re.Match[str]) -> str:
    def wrapped(part: str) -> str:
        return part if re.fullmatch(r"\w+|\\[a-zA-Z]+", part.strip()) else f"({part.strip()})"

    return f"{wrapped(match[1])}/{wrapped(match[2])}"


def _display(match: re.Match[str]) -> str:
    body = "\n".join(f"    {line}" for line in plain_math(match[1]).split("\n"))
    return f"\n\n{body}\n\n"
