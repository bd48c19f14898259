"""Slurm's way to write many hosts in one word. Pure."""

import re


def first_host(hosts: str) -> str:
    """Return the first host of a list as `SLURM_JOB_NODELIST` has it: `a[07,11-13]x,b2` begins with `a07x`.

    Each pair of brackets holds numbers and ranges of them, of which the first one counts. (`scontrol show hostnames`
    prints the whole list; it is not there in a container.)
    """
    # A comma within brackets parts numbers, and any other one parts hosts.
    first = re.match(r"(?:[^\[\],]|\[[^\]]*\])*", hosts)
    assert first is not None  # it matches the empty word too
    return re.sub(r"\[([^,\]-]*)[^\]]*\]", r"\1", first[0]).strip()
