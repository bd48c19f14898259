"""The parts of the reference that are made from the code: for the site, and as they are committed for GitHub."""
