"""What this code is called by pip, and its version; both hold whether it is installed or not."""

#: What pip calls the package; `lockstep` in the public index is another project.
DISTRIBUTION = "lockstep-sgd"

#: The distribution takes it from here (`pyproject.toml`).
VERSION = "0.1.0"
