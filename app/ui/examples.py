"""The example queries as buttons."""

from collections import Counter
from collections.abc import Sequence

from app.examples import Example
from app.ui.html import escape, file_url


def render_examples(examples: Sequence[Example]) -> str:
    """A list of buttons, or nothing; `data-example` is the position in `examples`."""
    if not examples:
        return ""
    buttons = []
    for number, (example, label) in enumerate(zip(examples, _labels(examples), strict=True)):
        picture = ""
        if example.image is not None:
            alt = "" if label else "example photo"
            picture = f'<img src="{escape(file_url(example.image))}" alt="{alt}" width="40" height="40" loading="lazy">'
        words = f"<span>{escape(label)}</span>" if label else ""
        plus = " fa-both" if example.image is not None and example.text else ""
        buttons.append(f'<button type="button" class="fa-chip{plus}" data-example="{number}">{picture}{words}</button>')
    return f'<div class="fa-chips" role="group" aria-label="Example queries"><b>Try</b>{"".join(buttons)}</div>'


def _labels(examples: Sequence[Example]) -> list[str]:
    """What the buttons say; those that would say the same are numbered."""
    labels = [example.label or example.text for example in examples]
    total, seen, named = Counter(labels), Counter[str](), []
    for label in labels:
        seen[label] += 1
        named.append(f"{label} ({seen[label]})" if label and total[label] > 1 else label)
    return named
