"""Write the table of ``rules/README.md``: how aligning every model of the catalogue ended.

``python tests/models/table.py``
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

import tlfx  # noqa: E402
from models.catalogue import CATALOGUE, Entry  # noqa: E402
from tlfx.analysis.invariants import measure, rectangles, target  # noqa: E402

README = Path(__file__).parents[2] / "rules" / "README.md"
OPERATIONS = [o for o in tlfx.Operation if o not in (tlfx.Operation.CONSTANT, tlfx.Operation.LAYOUT)]
TITLE = "## Models beyond timm's classifiers\n"
"""Begins the last section of the file, which is written anew."""
HEAD = f"""{TITLE}
Written by `python tests/models/table.py`; `tests/models/` holds the models, all small and with random weights.
*exact* is the largest violation of outputs, gradients, buffers and independence, *label* that of the label laws, as
`tlfx check` measures them. Operators are counted in training mode by class: {", ".join(o.value for o in OPERATIONS)}.

| model | source | status | operators by class | exact | label | reason |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Measure all and write the section."""
    lines = []
    for key, entry in CATALOGUE.items():
        lines.append("| " + " | ".join(row(key, entry)) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    kept = README.read_text(encoding="utf-8").partition(TITLE)[0]
    README.write_text(kept + HEAD + "\n".join(lines) + "\n", encoding="utf-8")


def row(key: str, entry: Entry) -> list[str]:
    """One line of the table."""
    named = [key.removeprefix(f"{entry.source}: "), entry.source]
    try:
        if entry.error is not None:
            _refusal(entry)
        figures = measure(entry.model(), entry.size)
    except tlfx.TlfxError as error:
        first = str(error).splitlines()[0].replace("|", r"\|")
        return [*named, "refused", "", "", "", f"{type(error).__name__}: {first}"]
    reason = "computes otherwise when traced" if figures.worst_exact() else ""
    return [*named, "ok", _counts(entry), f"{figures.worst_exact():.0e}", f"{figures.worst_label():.0e}", reason]


def _refusal(entry: Entry) -> None:
    """Raise what the model is refused with."""
    images = entry.images()
    aligned = tlfx.align(entry.model().eval())
    aligned(images, target(rectangles(len(images), entry.size[-2:], seed=0)))
    raise AssertionError("expected a refusal")


def _counts(entry: Entry) -> str:
    counts = tlfx.inspect(entry.model().train(), entry.images()).counts
    return " ".join(str(counts[o.value]) for o in OPERATIONS)


if __name__ == "__main__":
    main()
