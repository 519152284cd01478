"""Failures that are nobody's mistake, and already say in a sentence what happened."""

from beit.data.reading.watch import LoaderError
from beit.engine.distribution import RankError
from beit.engine.failure import Diverged, is_out_of_memory


def sentence_of(error: BaseException) -> str | None:
    """What to tell about an error when its traceback would add nothing; None: show the traceback.

    A rank's error is as telling as the error that it was made from.
    """
    if isinstance(error, RankError):
        cause = error.__cause__
        unexplained = cause is not None and not isinstance(cause, RankError)
        if unexplained and cause is not None and sentence_of(cause) is None:
            return None
        return str(error)
    if isinstance(error, (Diverged, LoaderError)):
        return str(error)
    if is_out_of_memory(error):
        reason = str(error).strip().partition("\n")[0] or "no more memory"
        return f"out of memory ({reason}); choose a smaller model, picture size or batch"
    return None
