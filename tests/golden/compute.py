"""A process that prints the weights' digests of golden jobs as JSON."""

import json
import sys
import tempfile
from pathlib import Path

from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.data.source import load
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.setup import open_run
from lockstep.runs.single_process import SingleProcessTrainer
from tests.golden.jobs import STEPS, golden_job


def digest_of(name: str, folder: Path) -> str:
    """Return the digest of the weights after the steps of a golden job."""
    job, _ = golden_job(name, folder)
    take_numerics(job.numerics)
    setup = open_run("golden", job, load(job.data), RunOptions())
    trainer = SingleProcessTrainer(setup)
    for step in range(STEPS):
        trainer.step(step)
    return weights_digest(setup.shard.weights)


def main(names: list[str]) -> None:
    """Print them."""
    with tempfile.TemporaryDirectory(prefix="lockstep-golden-") as folder:
        print(json.dumps({name: digest_of(name, Path(folder)) for name in names}))


if __name__ == "__main__":
    main(sys.argv[1:])
