"""tables: rows in columns, in which no word is ever broken, and none at all where nobody looks at a terminal."""

from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.table import Column, Table
from rich.text import Text

from .console import out, show

ENDLESS = 100_000
"""Characters of a line in a file."""


def show_table(
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Collection[str] = (),
    caption: str = "",
) -> None:
    """A table under its title. Texts wrap at blanks; what has none stays whole, wider than a terminal if need be.

    `right` are the heads of the columns that are numbers.
    """
    show(title)
    columns = []
    for head, cells in zip(heads, zip(*rows, strict=True) if rows else [()] * len(heads), strict=True):
        words = [word for cell in (head, *cells) for word in cell.split()]
        longest = max(map(cell_len, words), default=0)
        plain = not any(" " in cell.strip() for cell in (head, *cells))
        columns.append(
            Column(
                head,
                min_width=longest,
                no_wrap=plain,
                justify="right" if head in right else "left",
                header_style="bold",
            )
        )
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 1))
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table, width=None if out.is_terminal else ENDLESS, crop=False)
    if caption:
        show(caption)
