"""`python -m lockstep`."""

from lockstep.main import main

main()
