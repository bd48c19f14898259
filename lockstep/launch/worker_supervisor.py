"""Keeps the workers of a run alive: one that dies is started again, until that is hopeless."""

from collections.abc import Callable
from dataclasses import dataclass, field

from common.runtime.backoff import Backoff
from common.runtime.clock import Clock
from lockstep.launch.process_backend import WatchedProcess

#: Seconds that a process has to live for its earlier deaths not to count any more.
STEADY_S = 60.0

#: Seconds before the first new start at most, and before any.
FIRST_S, MOST_S = 0.5, 10.0

#: The exit code of who was refused, or cannot do what was asked of it: it would come to the same again.
USAGE = 2


@dataclass
class Restarts:
    """The deaths of one process and of those that took its place."""

    #: How many deaths in a row are put up with.
    most: int
    #: Tells it from the others, so that not all are started in the same moment.
    seed: str
    deaths: int = 0

    def delay_s(self, lived_s: float, code: int) -> float | None:
        """Book a death; return the seconds until a new start, None where that is hopeless.

        `lived_s` are the seconds that it lived, `code` is its exit code, negative for a signal.
        """
        if lived_s >= STEADY_S:
            self.deaths = 0
        if code == USAGE or self.deaths >= self.most:
            return None
        self.deaths += 1
        return Backoff(first_s=FIRST_S, most_s=MOST_S, seed=self.seed).delay_s(self.deaths)


#: Starts a worker for the place of that number.
Start = Callable[[int], WatchedProcess]


@dataclass
class SupervisedWorker:
    """One place."""

    restarts: Restarts
    born_s: float
    #: Who was last seen dead there: each death is told once.
    mourned: WatchedProcess | None = None
    #: When the next one starts, None where nobody will.
    due_s: float | None = None


@dataclass
class WorkerSupervisor:
    """All places; `workers` are those who hold them, or held them last, and are the caller's to look at."""

    start: Start
    workers: list[WatchedProcess]
    clock: Clock
    most: int
    posts: list[SupervisedWorker] = field(default_factory=list)

    def fill(self, count: int) -> None:
        """Start a worker for each of so many places."""
        for number in range(count):
            self.posts.append(SupervisedWorker(Restarts(self.most, seed=f"worker {number}"), self.clock.now()))
            self.workers.append(self.start(number))

    def dead(self) -> list[int]:
        """Return the places whose workers have died since the last call, as numbers; book who follows and when."""
        found = []
        for number, (post, worker) in enumerate(zip(self.posts, self.workers, strict=True)):
            if not worker.has_ended() or worker.code == 0 or worker is post.mourned:
                continue
            post.mourned, now = worker, self.clock.now()
            delay_s = post.restarts.delay_s(worker.lived_s(post.born_s, now), worker.code)
            post.due_s = None if delay_s is None else now + delay_s
            found.append(number)
        return found

    def is_given_up(self, number: int) -> bool:
        """Tell whether a place stays empty."""
        post = self.posts[number]
        return post.mourned is self.workers[number] and post.due_s is None

    def are_given_up(self) -> bool:
        """Tell whether nobody is left, and nobody will come."""
        return all(map(self.is_given_up, range(len(self.posts))))

    def follow(self) -> None:
        """Start those whose time has come, each where the one before it was."""
        for number, post in enumerate(self.posts):
            if post.due_s is not None and self.clock.now() >= post.due_s:
                post.due_s, post.born_s = None, self.clock.now()
                # What the dead one holds, a core of a cluster, is what the next one waits for.
                self.workers[number].make_end(0.0)
                self.workers[number] = self.start(number)
