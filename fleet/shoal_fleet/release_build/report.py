"""What a person wants to know of a built model: as Markdown, as a drawing, and the facts as JSON. Pure."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MARKDOWN_FILE: Final = "report.md"
JSON_FILE: Final = "report.json"
DRAWING_FILE: Final = "report.svg"

Facts = Mapping[str, Any]
_WORDS: Final = {
    "sqnr_db": "signal to noise, dB",
    "agreement": "top-1 agreement with the float model",
    "accuracy": "accuracy",
    "float_accuracy": "accuracy of the float model",
    "cosine": "mean cosine",
    "cosine_p1": "cosine of the worst hundredth",
    "overlap": "overlap of neighbours",
    "not_finite": "answers that are NaN or infinite",
}
_WIDTH, _LABEL, _ROW = 720, 250, 22
_COLOURS: Final = ("#2a7f9e", "#9e9e9e", "#c0603a")


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a drawing: its share of the longest is drawn, its text is printed."""

    label: str
    value: float
    text: str
    colour: str = _COLOURS[0]


def report_files(facts: Facts) -> dict[str, bytes]:
    """The report's files by name; `facts` is the worker's result."""
    return {
        MARKDOWN_FILE: markdown(facts).encode(),
        JSON_FILE: (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode(),
        DRAWING_FILE: drawing(facts).encode(),
    }


def verdict(facts: Facts) -> str:
    """The result in one line."""
    size = facts["model_bytes"] / max(1, facts["source_bytes"])
    if facts["way"] == "float":
        return "not quantised: no smaller model answered well enough"
    words = f"{facts['way']}, {facts['preset']}: {size:.2f} of the size"
    if facts["excluded"]:
        words += f", {len(facts['excluded'])} nodes left in float"
    return words


def markdown(facts: Facts) -> str:
    """The report in words and tables."""
    best = facts["attempts"][-1]
    lines = [
        "# How this model was made small",
        "",
        f"**{verdict(facts)}.**",
        "",
        "![sizes, processor time and updates](report.svg)",
        "",
        "| figure | value |",
        "|---|---|",
        f"| float file, bytes | {facts['source_bytes']:,} |",
        f"| model file, bytes | {facts['model_bytes']:,} |",
        f"| processor time an item, of the float model's | {_cpu_share(facts, best):.2f} |",
        *(
            f"| {_WORDS.get(name, name)} | {value:.4f} |"
            for name, value in taken_figures(facts).items()
        ),
        f"| judged on | {facts['evaluation_items']} items |",
        f"| calibrated on | {facts['calibration_items']} items |",
        "",
        "## What was tried",
        "",
        "| way | nodes left in float | bytes | processor time | verdict |",
        "|---|---|---|---|---|",
        *(
            f"| {each['way']} | {len(each['excluded'])} | {each['model_bytes']:,}"
            f" | {_cpu_share(facts, each):.2f} | {_cell(_failures(each))} |"
            for each in facts["attempts"]
        ),
    ]
    if facts["excluded"]:
        lines += [
            "",
            f"Left in float ({facts['excluded_share']:.1%} of the weights): "
            + ", ".join(f"`{name.replace('`', '')}`" for name in facts["excluded"]),
        ]
    if facts["choices"]:
        lines += [
            "",
            "## The update from the old release",
            "",
            "| scales | update, bytes (estimated) | scales kept | agreement or cosine | accuracy | |",
            "|---|---|---|---|---|---|",
            *(_choice_row(each) for each in facts["choices"]),
        ]
    if facts["operator_sets"]:
        lines += ["", "## Operators", "", *map(_operators, facts["operator_sets"])]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return "\n".join([*lines, "", f"Made with {versions}.", ""])


def _operators(group: tuple[str, int, Sequence[str]]) -> str:
    """One line of what a manifest lists."""
    domain, version, operators = group
    names = ", ".join(f"`{name.replace('`', '')}`" for name in operators)
    return f"- {_cell(domain or 'ai.onnx')} {version}: {names}"


def taken_figures(facts: Facts) -> dict[str, float]:
    """The guard's figures of the model that was taken."""
    chosen = [each for each in facts["choices"] if each["chosen"]]
    figures: dict[str, float] = (chosen or facts["attempts"][-1:])[0]["figures"]
    return figures


def drawing(facts: Facts) -> str:
    """Bars for sizes, processor time and updates, as SVG."""
    attempts = facts["attempts"]
    names = [_attempt_name(each) for each in attempts]
    groups = [
        (
            "file, bytes",
            [
                Bar("float", facts["source_bytes"], f"{facts['source_bytes']:,}", _COLOURS[1]),
                *(
                    Bar(name, each["model_bytes"], f"{each['model_bytes']:,}", _colour(each))
                    for name, each in zip(names, attempts, strict=True)
                ),
            ],
        ),
        (
            "processor time an item, us",
            [
                _time_bar("float", facts["float_item_cpu_s"], _COLOURS[1]),
                *(
                    _time_bar(name, each["item_cpu_s"], _colour(each))
                    for name, each in zip(names, attempts, strict=True)
                ),
            ],
        ),
    ]
    if facts["choices"]:
        bars = [
            Bar(
                each["name"] + (" (taken)" if each["chosen"] else ""),
                each["delta_bytes"],
                f"{each['delta_bytes']:,}",
                _COLOURS[2] if each["refused"] else _COLOURS[0],
            )
            for each in facts["choices"]
        ]
        groups.append(("update from the old release, bytes (estimated)", bars))
    return _svg(groups)


def _svg(groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    out, y = [], 10
    for title, bars in groups:
        y += _ROW
        out.append(f'<text x="10" y="{y}" font-weight="bold">{html.escape(title)}</text>')
        longest = max((bar.value for bar in bars), default=0) or 1
        for bar in bars:
            y += _ROW
            width = (_WIDTH - _LABEL - 120) * bar.value / longest
            out.append(f'<text x="10" y="{y}">{html.escape(bar.label)}</text>')
            size = f'width="{width:.1f}" height="16"'
            out.append(f'<rect x="{_LABEL}" y="{y - 13}" {size} fill="{bar.colour}"/>')
            end = f"{_LABEL + width + 6:.1f}"
            out.append(f'<text x="{end}" y="{y}">{html.escape(bar.text)}</text>')
        y += _ROW // 2
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 10}"'
        ' font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, *out, "</svg>", ""])


def _choice_row(each: Facts) -> str:
    figures = each["figures"]
    likeness = figures.get("agreement", figures.get("cosine"))
    accuracy = figures.get("accuracy")
    kept = f"{each['kept_scales']} of {each['scales']}" if each["scales"] else "-"
    note = "taken" if each["chosen"] else _cell(each["refused"]) or "larger"
    return (
        f"| {each['name']} | {each['delta_bytes']:,} | {kept}"
        f" | {_number(likeness)} | {_number(accuracy)} | {note} |"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _failures(each: Facts) -> str:
    return "; ".join(each["failures"]) or "good enough"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _attempt_name(each: Facts) -> str:
    left = len(each["excluded"])
    return f"{each['way']}, {left} nodes float" if left else str(each["way"])


def _colour(each: Facts) -> str:
    return _COLOURS[2] if each["failures"] else _COLOURS[0]


def _time_bar(name: str, seconds: float, colour: str) -> Bar:
    return Bar(name, seconds, f"{seconds * 1e6:,.1f}", colour)


def _cpu_share(facts: Facts, each: Facts) -> float:
    share: float = each["item_cpu_s"] / max(1e-12, facts["float_item_cpu_s"])
    return share
