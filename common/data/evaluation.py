"""How a test set is cut into pieces of work; arithmetic only."""

#: Test samples of one piece at most. Not part of the job: it decides the last bits of the test loss and nothing else.
EVALUATION_SAMPLES = 500


def evaluation_pieces(samples: int) -> int:
    """Return into how many pieces a test set of that size is cut."""
    return max(1, -(-samples // EVALUATION_SAMPLES))


def evaluation_rows(piece: int, samples: int) -> slice:
    """Return the rows of one piece."""
    pieces = evaluation_pieces(samples)
    return slice(piece * samples // pieces, (piece + 1) * samples // pieces)
