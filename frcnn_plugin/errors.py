"""The one exception type that is meant for the user's eyes."""

from collections.abc import Collection


class UserError(ValueError):
    """A mistake in the user's input; the message names it and the fix.

    The commands print it without a traceback.
    """


def check_choice(key: str, value: object, choices: Collection[str]) -> None:
    """Raise a UserError if the value of a key is none of its choices."""
    if value not in choices:
        raise UserError(f"{key} is '{value}': use one of {', '.join(choices)}")
