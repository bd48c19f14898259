"""What the reference shows of the code, made from the code itself when the site is built: nothing here is copied."""
