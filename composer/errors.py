"""errors: what composer raises. Every message is meant for the person who wrote the name or the file."""

LONGEST_QUOTE = 60
MOST_LISTED = 24


def quoted(text: object) -> str:
    """`repr(text)`, at most 60 characters long: safe to show whatever `text` is."""
    if not isinstance(text, str):
        text = str(text)
    # Cutting first keeps a name of many megabytes from being escaped in full.
    kept = text[:LONGEST_QUOTE]
    while len(shown := repr(kept if len(kept) == len(text) else kept + "…")) > LONGEST_QUOTE:
        kept = kept[:-1]
    return shown


def listed(names: list[str]) -> str:
    """The names with commas, or the first of them and how many more there are."""
    more = len(names) - MOST_LISTED
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:MOST_LISTED])} and {more} more"


class ComposeError(ValueError):
    """A name, recipe, family or checkpoint that cannot be composed."""


def in_a_line(error: ComposeError) -> str:
    """What it says, all problems of a family after each other."""
    return "; ".join(error.problems) if isinstance(error, FamilyError) else str(error)


class ComposeWarning(UserWarning):
    """Something a person should know of what is composed, and need not change."""


class UnknownName(ComposeError):
    """No composition has this name. `valid` lists the family's names, `nearest` the closest of them."""

    # All three are in `args`, so that the error survives pickling between an engine's processes.
    def __init__(self, name: str, valid: list[str], nearest: str | None = None) -> None:
        super().__init__(name, valid, nearest)
        self.name = name
        self.valid = valid
        self.nearest = nearest

    def __str__(self) -> str:
        hint = f" Did you mean {self.nearest!r}?" if self.nearest else ""
        return f"there is no model {quoted(self.name)}.{hint} Valid: {listed(self.valid)}"


class FamilyError(ComposeError):
    """A family that cannot be used. `problems` has every reason found, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)
