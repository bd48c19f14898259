"""Runs the samples of PyTorch's own tests through our functions, layers and exported graphs; prints a table."""

import sys
from collections import Counter

from tests.conformance.graphs import graph_results
from tests.conformance.modules import module_results
from tests.conformance.operations import Outcome, results, share_of_equal, table


def main(names: list[str]) -> int:
    """Print the table, the reasons by how often they hold, and each difference; return how many differences."""
    found = [*results(names), *module_results(names), *graph_results(names)]
    print(table(found))
    equal, count = share_of_equal(found)
    print(
        f"\n{equal} of {count} samples are equal ({equal / max(1, count):.0%}), {len(found) - count} PyTorch refuses\n"
    )
    for why, count in Counter(each.why for each in found if each.outcome is Outcome.REFUSED).most_common():
        print(f"{count:6d}  {why}")
    faults = [each for each in found if each.outcome.is_fault]
    for (name, outcome, why), count in Counter(
        (each.name, each.outcome.value, each.why) for each in faults
    ).most_common():
        print(f"{name}: {outcome}: {why}" + (f" ({count} samples)" if count > 1 else ""))
    return min(len(faults), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
