"""A place for the processes that train the zoo."""

from tests.system.conftest import place as place
