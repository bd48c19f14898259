"""Which nets and layers of PyTorch were tried, and what came of it: from what the tests of the zoo have recorded."""

import json
from pathlib import Path
from typing import Any

from docs.generators.tables import code, table

OUTCOMES = Path(__file__).parents[2] / "tests" / "zoo" / "outcomes.json"


def pytorch_nets() -> str:
    """Return the nets of each library, with the version of the library."""
    versions, nets = _recorded()["versions"], sorted(_recorded()["nets"])
    rows = [
        [f"{library} {version}", ", ".join(code(net) for net in nets if _library(net) == library)]
        for library, version in versions.items()
        if library != "torch"
    ]
    return table(("library", "nets"), rows)


def pytorch_layers() -> str:
    """Return the layers that can be trained, and why the others are refused."""
    outcomes: dict[str, list[str]] = {}
    for name, reason in sorted(_recorded()["layers"].items(), key=lambda each: bool(each[1])):
        outcomes.setdefault(reason or "trains", []).append(code(name))
    return table(("layers", "outcome"), [[", ".join(names), reason] for reason, names in outcomes.items()])


def _recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(OUTCOMES.read_text(encoding="utf-8"))
    return found


def _library(net: str) -> str:
    return "timm" if net.startswith("test_") else "transformers" if net[0].isupper() else "torchvision"
