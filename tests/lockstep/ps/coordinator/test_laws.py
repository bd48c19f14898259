"""Whatever happens in whatever order: the state is consistent, every micro-batch counts once, and a run can finish."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.job.job import Job
from lockstep.common.protocol.messages import Diverged, Lease, Result
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import UpdateWeights
from lockstep.ps.coordinator.transitions import RunPhase
from tests.lockstep.ps.runs import Drive, facts_of, peer_of, result_of

WORKERS = st.integers(0, 4)

#: What may happen, as (what, worker or seconds or place in a list).
HAPPENINGS = st.one_of(
    st.tuples(st.sampled_from(["join", "prepare", "ask", "leave", "fail"]), WORKERS),
    st.tuples(st.sampled_from(["answer", "answer", "answer", "late", "twice", "silence"]), WORKERS),
    st.tuples(st.just("time"), st.integers(0, 70)),
    st.tuples(st.just("nonsense"), st.integers(0, 9)),
)


class Story:
    """Plays happenings on a coordinator whose workers die, answer twice, late or never."""

    def __init__(self, micro_batches: int, min_workers: int) -> None:
        job = Job(model="linear", steps=3, global_batch=16, micro_batches=micro_batches)
        self.drive = Drive(facts_of(job, min_workers=min_workers, test_samples=1200))
        self.lives = 0
        #: The present life of each worker: a new life has a new peer and incarnation.
        self.life: dict[int, int] = {}
        self.old: list[tuple[int, Result]] = []

    def play(self, what: str, number: int) -> None:
        drive, life = self.drive, self.life.get(number, 0)
        leases = drive.leases.get(life, [])
        match what:
            case "join":
                self.lives += 1
                self.life[number] = self.lives
                drive.join(self.lives)
            case "prepare":
                drive.prepare(life)
            case "ask":
                drive.ask(life)
            case "leave":
                drive.leave(life)
            case "fail" if leases and drive.coordinator.phase is RunPhase.EVALUATING and not self.old:
                drive.fail(life)
            case "answer" | "twice" if leases:
                self.old.append((life, result_of(leases[0])))
                drive.answer(life)
                if what == "twice":
                    drive.send(*self.old[-1])
            case "silence" if leases:
                self.old.append((life, result_of(leases.pop())))
            case "late" if self.old:
                drive.send(*self.old[number % len(self.old)])
            case "time":
                drive.pass_time(float(number))
            case "nonsense":
                drive.send(life, nonsense(number, drive.coordinator.round.step))
                far = Diverged(number=2**62, micro_batch=0, layer="")
                drive.happen(events.Received(peer=peer_of(life), message=far))

    def finish(self) -> None:
        """One honest worker more, and time: that must be enough."""
        self.lives += 100
        drive = self.drive
        for worker in range(self.lives, self.lives + drive.info.options.least_workers()):
            drive.enter(worker)
        honest = range(self.lives, self.lives + drive.info.options.least_workers())
        for _ in range(1000):
            if drive.coordinator.is_over():
                return
            busy = [worker for worker in honest if drive.leases.get(worker)]
            if busy:
                drive.answer(busy[0])
            else:
                drive.pass_time(70.0)
        raise AssertionError("the run does not come to its end")


def nonsense(number: int, step: int) -> Result:
    """Return a result that is late, early, of no node, or of no such micro-batch."""
    lo, hi, step = [(0, 1, step + 1), (1, 3, step), (0, 2**31, step), (4, 2, step), (0, 1, max(0, step - 1) + 7)][
        number % 5
    ]
    return Result(work="train", step=step, lo=lo, hi=hi, loss_sum=float("nan"), count=0, compute_s=0.0)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.integers(1, 9), st.integers(1, 3), st.lists(HAPPENINGS, max_size=60))
def test_any_story_ends_with_every_micro_batch_counted_once(
    micro_batches: int, min_workers: int, happenings: list[tuple[str, int]]
) -> None:
    story = Story(micro_batches, min_workers)
    for what, number in happenings:
        story.play(what, number)
    story.finish()
    effects = story.drive.effects
    assert story.drive.coordinator.phase is RunPhase.FINISHED
    steps = []
    for effect in effects:
        if isinstance(effect, UpdateWeights):
            shares = effect.account.shares
            assert sorted(at for share in shares for at in range(share.lo, share.hi)) == list(range(micro_batches))
            assert effect.tally.count == micro_batches
            steps.append(effect.step)
    assert steps == [0, 1, 2]
    assert sum(map(len, story.drive.counted)) == 3 * micro_batches


def test_the_stories_lease_work_of_both_kinds() -> None:
    story = Story(4, 1)
    story.finish()
    leased = [effect.message for effect in story.drive.effects if hasattr(effect, "message")]
    assert {message.work for message in leased if isinstance(message, Lease)} == {"train", "evaluate"}
