"""A table of text, as rich draws it."""

from collections.abc import Sequence


def table(title: str, columns: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Lines of a name and its cells, under a title and the names of the columns."""
    import io

    from rich import table as rich_table
    from rich.console import Console
    from rich.text import Text

    made = rich_table.Table(title=title, title_justify="left")
    made.add_column("")
    for column in columns:
        made.add_column(column, justify="right")
    for name, cells in lines:
        made.add_row(Text(name), *map(Text, cells))  # a label may look like markup
    written = io.StringIO()
    Console(file=written, width=120).print(made)
    return written.getvalue().rstrip("\n")
