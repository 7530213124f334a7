"""The one exception type that is meant for the user's eyes."""


class UserError(ValueError):
    """A mistake in the user's input; the message names it and the fix.

    The commands print it without a traceback.
    """
