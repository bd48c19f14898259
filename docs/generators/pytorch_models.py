"""Which nets and layers of PyTorch were tried, and what came of it: from what the tests of the zoo have recorded."""

import json
from pathlib import Path
from typing import Any

from docs.generators.tables import code, table

OUTCOMES = Path(__file__).parents[2] / "tests" / "zoo" / "outcomes.json"


def pytorch_nets() -> str:
    """Return the nets with their sizes, and how often each was trained."""
    rows = []
    for net, found in sorted(_recorded()["nets"].items(), key=lambda each: (_library(each[0]), each[0])):
        size = next(iter(found.values()))["parameters"]
        counts = [f"{outcome['digests']} in {outcome['runs']} runs" for outcome in found.values()]
        agrees = all(outcome["plain loop"] for outcome in found.values())
        rows.append([_library(net), code(net), f"{size:,}", *counts, "equal" if agrees else "differs"])
    processors = [f"digests, {_words(name)}" for name in next(iter(_recorded()["nets"].values()))]
    return table(("library", "net", "parameters", *processors, "plain loop"), rows)


def pytorch_layers() -> str:
    """Return the layers that can be trained, and why the others are refused."""
    found = _recorded()["layers"]
    trained = ", ".join(code(name) for name, reason in found.items() if not reason)
    refused = [[code(name), reason] for name, reason in found.items() if reason]
    return table(("layer", "outcome"), [[trained, "trains"], *refused])


def pytorch_versions() -> str:
    """Return the versions of the libraries."""
    return table(("library", "version"), [[code(name), text] for name, text in _recorded()["versions"].items()])


def _recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(OUTCOMES.read_text(encoding="utf-8"))
    return found


def _library(net: str) -> str:
    return "timm" if net.startswith("test_") else "transformers" if net[0].isupper() else "torchvision"


def _words(processor: str) -> str:
    return "native" if processor == "as it is" else processor
