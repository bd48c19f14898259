"""The name of this code in pip, and its version; both hold whether it is installed or not."""

#: The name of the package in pip; `lockstep` in the public index is another project.
DISTRIBUTION = "lockstep-sgd"

#: The distribution takes it from here (`pyproject.toml`).
VERSION = "0.1.0"
