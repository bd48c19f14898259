"""A model whose bits cannot be repeated is found before a run begins, with what is wrong in it: planted models."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lockstep.common.errors import LockstepError, ModelError
from lockstep.common.job.objective import Objective
from lockstep.common.model.port import Evidence
from lockstep.common.model.source import open_model
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.setup import open_run
from lockstep.worker.setup import gather
from tests.lockstep.common.model.pytorch.jobs import NAMES, NETS, batch, model_file, model_of, torch_job
from tests.simulation.small import digits, job_of

torch: Any = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")

NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(784, 10)
        {made}

    def forward(self, x):
        x = x.flatten(1)
        {done}
        return self.inner(x)
"""


def evidence_of(model: Any) -> Evidence:
    evidence: Evidence = model.evidence(Objective(), *batch())
    return evidence


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_can_be_repeated_has_the_same_evidence_each_time(name: str) -> None:
    first, second = (evidence_of(open_model(f"{NETS}:{name}", 3)) for _ in range(2))
    assert first == second
    assert first.engine.startswith(f"torch {torch.__version__}, ")
    assert evidence_of(open_model(f"{NETS}:{name}", 4)) != first


def test_parameters_without_a_gradient_are_named(tmp_path: Path) -> None:
    text = NET.format(made="self.spare = nn.Linear(2, 2)", done="x = x if len(x) > 99 else x")
    found = evidence_of(model_of(tmp_path, text))
    assert found.unused == ("spare.weight", "spare.bias")
    assert "'spare.weight' and 1 more parameters get no gradient" in found.notices()[0]
    assert not evidence_of(open_model(f"{NETS}:mlp", 3)).notices()


def test_parameters_that_get_a_gradient_later_in_the_first_step_are_not_named(tmp_path: Path) -> None:
    made = "self.spare, self.late = nn.Linear(2, 2), nn.Linear(784, 10)"
    text = NET.format(made=made, done="if len(x) == 3: return self.inner(x) + self.late(x)")
    # Micro-batches of 2, 3, 2 and 3 samples.
    values = {"global_batch": 10, "micro_batches": 4, "numerics": "native", "model": model_file(tmp_path, text)}
    job = job_of(**values)
    notices = [each for each in open_run("run", job, digits(), RunOptions()).notices if "no gradient" in each]
    assert len(notices) == 1
    assert notices[0].startswith("'spare.weight' and 1 more parameters get no gradient in the first step")


PLANTED = {
    "a loss that is detached": (
        NET.format(made="", done="return self.inner(x).detach()"),
        "the loss does not depend on any parameter",
    ),
    "weights within the bounds of a clamp": (
        NET.format(made="", done="self.inner.weight.data.clamp_(-9.0, 9.0)"),
        "changes 'inner.weight' in its forward",
    ),
    "weights, replaced by way of .data": (
        NET.format(made="", done="self.inner.weight.data = torch.renorm(self.inner.weight.data, 2, 0, 1e9)"),
        "changes 'inner.weight' in its forward",
    ),
    "counter": (NET.format(made="self.calls = 0", done="self.calls += 1"), "state of its own .* in 'calls'"),
    "list": (NET.format(made="self.seen = []", done="self.seen.append(len(x))"), "state of its own .* in 'seen'"),
    "hidden state": (
        NET.format(made="self.last = torch.zeros(1)", done="x = x + self.last; self.last = self.last + x.detach()[:1]"),
        "state of its own .* in 'last'",
    ),
    "buffer": (
        NET.format(made="self.register_buffer('count', torch.zeros(1))", done="self.count += 1"),
        "changes 'count' in its forward",
    ),
    "buffer, replaced": (
        NET.format(
            made="self.register_buffer('mean', torch.zeros(784))", done="self.mean = 0.9 * self.mean + x.mean(0)"
        ),
        "changes 'mean' in its forward",
    ),
    "buffer, unseen": (
        NET.format(made="self.register_buffer('count', torch.zeros(1))", done="self.count.data.add_(1)"),
        "changes 'count' in its forward",
    ),
    "weight": (
        NET.format(made="pass", done="torch.no_grad()(lambda: self.inner.weight.mul_(0.5))()"),
        "changes 'inner.weight' in its forward",
    ),
    "weight, unseen": (
        NET.format(made="pass", done="self.inner.bias.data.mul_(0.5)"),
        "changes 'inner.bias' in its forward",
    ),
    "draws of its own": (
        "import random\n\n\n" + NET.format(made="pass", done="x = x * random.random()"),
        "draws from Python's random: expected draws from PyTorch's generator only",
    ),
    # The last digits alone: of a machine that has been on for days, float32 does not tell two times apart.
    "evaluation": (
        "import time\n\n\n"
        + NET.format(made="pass", done="x = x if self.training else x * (time.perf_counter_ns() % 2**20)"),
        "output in evaluation mode differs",
    ),
    "memory that was not written": (
        # So much that it comes from the system, which gives zeros: what was there cannot differ by accident.
        NET.format(made="pass", done="x = x + torch.empty(2**24)[:784]"),
        "differs when it is computed again .*: draw only from PyTorch's generator, read no clock, and keep no state",
    ),
    "draws of its own that it keeps": (
        "import random\n\n\n"
        + NET.format(made="self.last = 1.0", done="self.last = random.random(); x = x * self.last"),
        "draws from Python's random: expected draws from PyTorch's generator only",
    ),
    "nondeterministic": (
        NET.format(made="pass", done="x = x.clone().put_(torch.tensor([0]), torch.ones(1))"),
        "uses put_.*, which PyTorch calls nondeterministic",
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_model_is_found(tmp_path: Path, what: str) -> None:
    text, expected = PLANTED[what]
    with pytest.raises(ModelError, match=expected) as raised:
        evidence_of(model_of(tmp_path, text))
    assert "\n" not in str(raised.value)


def tried(tmp_path: Path) -> tuple[Any, Any]:
    """Return a trial of a net, and what it computed first."""
    model: Any = model_of(tmp_path, NET.format(made="pass", done="pass"))
    trial = model.trial(Objective())
    trial.evidence(*batch())
    return trial, trial.first


def test_what_is_compared_is_what_was_computed(tmp_path: Path) -> None:
    _, first = tried(tmp_path)
    images, targets = batch()
    scores = torch.from_numpy(np.frombuffer(first.outputs, np.float32).reshape(len(images), 10).copy())
    loss = float(torch.nn.functional.cross_entropy(scores, torch.from_numpy(targets), reduction="sum"))
    assert np.frombuffer(first.loss, np.float64).tolist() == pytest.approx([loss])
    assert first.evaluated == first.outputs
    assert np.count_nonzero(first.sums) > 100


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *(("loss", "its loss"), ("outputs", "its output"), ("evaluated", "its output in evaluation mode")),
        *(("inner.weight", "the gradient of 'inner.weight'"), ("inner.bias", "the gradient of 'inner.bias'")),
    ],
)
def test_the_first_thing_that_differs_is_named(tmp_path: Path, field: str, text: str) -> None:
    trial, first = tried(tmp_path)
    assert trial._difference(first, first) is None
    if "." in field:
        sums = first.sums.copy()
        next(each for each in trial.structure.layout.parameters if each.name == field).view(sums).flat[-1] = 9.0
        # A gradient is named before what else differs.
        other = first._replace(sums=sums, loss=b"another")
    else:
        other = first._replace(**{field: b"another"})
    assert trial._difference(first, other) == text


TEACHER = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.student, teacher = nn.Linear(784, 10), nn.Linear(784, 10).requires_grad_(False)
        {made}

    @torch.no_grad()
    def follow(self, teacher):
        old, new = teacher.weight, self.student.weight
        {moved}

    def forward(self, x):
        x = x.flatten(1)
        {done}
        return self.student(x)
"""
LERP, FOLLOW = "old.lerp_(new, 0.01)", "self.follow(self.teacher)"

#: The average of a student that a module keeps itself: how it is kept, moved, and when.
TEACHERS = {
    "in place": ("self.teacher = teacher", LERP, FOLLOW),
    "in training": ("self.teacher = teacher", LERP, f"if self.training: {FOLLOW}"),
    "unseen": ("self.teacher = teacher", "old.data.lerp_(new, 0.01)", FOLLOW),
    "replaced": ("self.teacher = teacher", "old.data = torch.lerp(old, new, 0.01)", FOLLOW),
    "detached": ("self.teacher = teacher", "old.detach().lerp_(new, 0.01)", FOLLOW),
    "forward hook": (
        "self.teacher = teacher; self.register_forward_hook(lambda net, *_: net.follow(net.teacher))",
        *(LERP, "pass"),
    ),
    "hook of a gradient": (
        "self.teacher = teacher; self.student.weight.register_hook(lambda _: self.follow(self.teacher))",
        *(LERP, "pass"),
    ),
    "unseen, hook of a gradient": (
        "self.teacher = teacher; self.student.weight.register_hook(lambda _: self.follow(self.teacher))",
        *("old.data.lerp_(new, 0.01)", "pass"),
    ),
}


@pytest.mark.parametrize("way", TEACHERS)
def test_a_teacher_that_a_module_moves_itself_is_refused(tmp_path: Path, way: str) -> None:
    made, moved, done = TEACHERS[way]
    with pytest.raises(ModelError, match=r"the model changes 'teacher\.weight' in its forward: expected it to stay"):
        evidence_of(model_of(tmp_path, TEACHER.format(made=made, moved=moved, done=done)))


@pytest.mark.parametrize("made", ["self.kept = [teacher]", "self.__dict__['kept'] = teacher"])
def test_a_teacher_that_is_no_part_of_the_module_is_state(tmp_path: Path, made: str) -> None:
    moved = TEACHER.format(made=made, moved=LERP, done="self.follow(self.kept_teacher())")
    moved += """
    def kept_teacher(self):
        return self.kept[0] if isinstance(self.kept, list) else self.kept
"""
    with pytest.raises(ModelError, match=r"the model keeps state of its own .* in 'kept"):
        evidence_of(model_of(tmp_path, moved))


def test_a_teacher_that_moves_in_evaluations_is_named_before_a_run(tmp_path: Path) -> None:
    text = TEACHER.format(made="self.teacher = teacher", moved=LERP, done=FOLLOW)
    with pytest.raises(ModelError, match=r"'teacher\.weight' differs; .* change no parameter or buffer in a forward"):
        open_run("run", job_of(numerics="native", model=model_file(tmp_path, text)), digits(), RunOptions())


def test_a_teacher_that_stays_is_allowed(tmp_path: Path) -> None:
    done = "x = x + 0.0 * self.teacher(x).sum()"
    text = TEACHER.format(made="self.teacher = teacher", moved="pass", done=done)
    assert evidence_of(model_of(tmp_path, text)).digest


@pytest.mark.parametrize("persistent", [True, False])
def test_a_constant_that_changes_no_result_is_in_the_digest(tmp_path: Path, persistent: bool) -> None:
    made = "self.register_buffer('{}', torch.tensor([{}, 5.0]), persistent={})"
    digests = list[str]()
    for name, value in (("limit", 2.0), ("limit", 2.0), ("limit", 3.0), ("bound", 2.0)):
        folder = tmp_path / f"{len(digests)}"
        folder.mkdir()
        text = NET.format(made=made.format(name, value, persistent), done="pass")
        digests.append(evidence_of(model_of(folder, text)).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_what_is_kept_and_does_not_move_is_allowed(tmp_path: Path) -> None:
    kept = NET.format(made="self.shape = None; self.last = None", done="self.shape = x.shape; self.last = x.detach()")
    assert evidence_of(model_of(tmp_path, kept)).digest


IMPORTED = """
NOISE = {draw}


def build():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    model.register_buffer("noise", torch.as_tensor(NOISE))
    return model
"""


def test_what_is_drawn_from_another_generator_at_import_is_found(tmp_path: Path) -> None:
    text = "import random\n" + IMPORTED.format(draw="[random.random()]")
    with pytest.raises(ModelError, match="is another one when it is built again: 'noise' differs"):
        open_run("run", job_of(numerics="native", model=model_file(tmp_path, text)), digits(), RunOptions())


def test_what_is_drawn_from_the_generator_of_pytorch_at_import_is_the_same_everywhere(tmp_path: Path) -> None:
    job = job_of(numerics="native", model=model_file(tmp_path, IMPORTED.format(draw="torch.randn(3)")))
    found = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.add(open_run("run", job, digits(), RunOptions()).info.fingerprint.evidence)
        assert seed == 2 or not torch.equal(torch.get_rng_state(), torch.zeros_like(state))
    assert len(found) == 1


def test_the_caller_keeps_its_generator() -> None:
    torch.manual_seed(5)
    open_model(f"{NETS}:lenet", 3)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_a_worker_with_another_pytorch_or_another_result_is_refused() -> None:
    job = torch_job("mlp")
    welcome = open_run("run", job, digits(), RunOptions()).info.welcome(0)
    assert gather(welcome, lambda name: digits()).model.layout.size
    for field, value, text in (
        ("engine", "torch 1.0, AVX2", r"is computed by torch .* here, and by torch 1\.0, AVX2 at the server"),
        ("evidence", "0" * 16, r"computes something else here than at the server, of the first micro-batch"),
    ):
        with pytest.raises(ModelError, match=text) as raised:
            gather(msgspec.structs.replace(welcome, **{field: value}), lambda name: digits())
        assert "\n" not in str(raised.value)


def test_if_numerics_may_be_mixed_nothing_is_compared() -> None:
    options = RunOptions(allow_mixed_numerics=True)
    welcome = open_run("run", torch_job("mlp"), digits(), options).info.welcome(0)
    assert (welcome.engine, welcome.evidence) == ("", "")


def test_a_model_of_the_library_needs_no_evidence() -> None:
    info = open_run("run", job_of(numerics="native"), digits(), RunOptions()).info
    assert (info.fingerprint.engine, info.fingerprint.evidence) == ("", "")


def test_where_samples_are_sent_the_evidence_needs_none_of_them() -> None:
    job, empty = torch_job("mlp"), digits()
    options = RunOptions(ship_data=True)
    welcome = open_run("run", job, digits(), options).info.welcome(0)
    assert welcome.manifest is not None
    assert gather(welcome, lambda name: empty).model.layout.size
    assert welcome.evidence != open_run("run", job, digits(), RunOptions()).info.fingerprint.evidence


def test_a_run_is_not_resumed_with_another_pytorch() -> None:
    ours = open_run("run", torch_job("mlp"), digits(), RunOptions()).info.fingerprint
    theirs = msgspec.structs.replace(ours, engine="torch 1.0, AVX2")
    assert [name for name, _, _ in ours.differences(theirs)] == ["engine"]
    assert issubclass(ModelError, LockstepError)
