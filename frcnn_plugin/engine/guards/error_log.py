"""A user's mistake in the middle of training is logged as a sentence, not as a stack trace."""

from __future__ import annotations

import logging

from ...errors import UserError

# The module of the host's training loop, which logs every exception with its traceback.
_HOST_LOGGER = "detectron2.engine.train_loop"


def log_user_errors_plainly() -> None:
    """Filter what the host's training loop logs; a second call changes nothing."""
    logger = logging.getLogger(_HOST_LOGGER)
    if not any(type(f).__qualname__ == _PlainUserErrors.__qualname__ for f in logger.filters):
        logger.addFilter(_PlainUserErrors())


class _PlainUserErrors(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Take the traceback off a record about a UserError; never drops one."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, UserError):
            record.msg, record.args = "training stopped: %s", (str(error),)
            record.exc_info = None
        return True
