"""`python -m tests.zoo`: look at every net and layer of the zoo, and record what was found for the docs.

It takes ten minutes on an idle machine. `python -m tests.zoo layers` looks at the layers only, in seconds.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.system.processes import Place
from tests.zoo.layers import LAYERS
from tests.zoo.outcomes import outcome_of_layer, record
from tests.zoo.runs import GROUPS, PROCESSORS, outcomes_of_nets


def main(parts: list[str]) -> None:
    """Record these parts."""
    if "layers" in parts:
        record("layers", {layer: outcome_of_layer(layer) for layer in LAYERS})
    if "nets" in parts:
        nets: dict[str, dict[str, Any]] = {}
        for group in GROUPS:
            for processor in PROCESSORS:
                # Short, since it is a part of the paths of sockets.
                folder, temporary = (Path(tempfile.mkdtemp(prefix="lt-")) for _ in range(2))
                place = Place(folder, temporary)
                try:
                    for net, found in outcomes_of_nets(place, group, processor).items():
                        nets.setdefault(net, {})[processor] = found
                        print(net, processor, found, flush=True)
                finally:
                    place.clear()
                    for each in (folder, temporary):
                        shutil.rmtree(each, ignore_errors=True)
                record("nets", nets)


if __name__ == "__main__":
    main(sys.argv[1:] or ["layers", "nets"])
