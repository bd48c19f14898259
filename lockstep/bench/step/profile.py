"""Where a step's time goes, by primitive, forward and backward."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from common.autograd.primitives.primitive import Primitive
from common.runtime.clock import Clock


@dataclass
class ProfileShare:
    """What one primitive took in one direction."""

    seconds: float = 0.0
    calls: int = 0
    #: Of the arrays that went in and came out.
    bytes: int = 0


@dataclass
class Profile:
    """An observer of the engine that adds up what each primitive takes."""

    clock: Clock
    shares: dict[tuple[str, str], ProfileShare] = field(default_factory=dict)

    def __call__(
        self, primitive: Primitive, direction: str, function: Callable[..., Any], *args: Any, **options: Any
    ) -> Any:
        """Call the function and book its time and its arrays."""
        began = self.clock.now()
        result = function(*args, **options)
        share = self.shares.setdefault((primitive.name, direction), ProfileShare())
        share.seconds += self.clock.now() - began
        share.calls += 1
        share.bytes += sum(each.nbytes for each in (*args, result) if isinstance(each, np.ndarray))
        return result

    def table(self, steps: int, step_s: float) -> Table:
        """Return the primitives of an average step, dearest first; `step_s` seconds is the whole step."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("primitive", "direction", "calls", "µs", "share", "MB"):
            table.add_column(heading, justify="left" if heading in ("primitive", "direction") else "right")
        rows = sorted(self.shares.items(), key=lambda item: -item[1].seconds)
        for (name, direction), share in rows:
            seconds = share.seconds / steps
            figures = (f"{seconds * 1e6:,.1f}", f"{seconds / step_s:.1%}", f"{share.bytes / steps / 1e6:.2f}")
            table.add_row(name, direction, f"{share.calls / steps:g}", *figures)
        rest = step_s - sum(share.seconds for share in self.shares.values()) / steps
        table.add_row("everything else", "", "", f"{rest * 1e6:,.1f}", f"{rest / step_s:.1%}", "")
        return table
