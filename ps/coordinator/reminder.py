"""When to say, again, for whom the run waits. Pure."""

import math
from dataclasses import dataclass

#: Seconds between two words on whom the run waits for.
REMINDER_S = 5.0


@dataclass
class Reminder:
    """Due as soon as the run waits, and every few seconds for as long as it does."""

    #: When to say it next; None while the run waits for nobody. It begins with waiting.
    due: float | None = -math.inf

    def is_due(self, now: float, *, is_waiting: bool) -> bool:
        """Tell whether to say it now; if so, it counts as said."""
        if not is_waiting:
            self.due = None
            return False
        if self.due is not None and now < self.due:
            return False
        self.due = now + REMINDER_S
        return True
