"""`scripts/simulate`: what it prints, and with which exit code it ends."""

from click.testing import CliRunner

from tests.simulation.simulator.__main__ import simulate_command


def test_a_seed_is_replayed_with_its_trace_and_counted() -> None:
    done = [CliRunner().invoke(simulate_command, ["--seeds", "1", "--trace"]) for _ in range(2)]
    assert [each.exit_code for each in done] == [0, 0]
    assert done[0].stdout == done[1].stdout
    assert ": receives Join(" in done[0].stdout
    assert done[0].stdout.splitlines()[-1].startswith("1 runs, ")
