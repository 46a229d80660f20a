"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """Something that was given is wrong; the message names it and says what would be right.

    The command line prints it as one line and exits with code 2.
    """
