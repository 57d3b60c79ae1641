"""Writes tables as HTML: the ablation table as one for each group of figures, each narrow enough for the page."""

from collections.abc import Sequence
from html import escape
from itertools import groupby

from pqm_fast.report.ablation import Cell, Table


def html_tables(table: Table) -> str:
    """The first table has the options too; a row without figures in a group is left out there."""
    first_figure = 1 + len(table.options)
    html, start = "", first_figure
    for group, members in groupby(table.columns, key=lambda column: column.group):
        columns = list(members)
        group_cells = slice(start, start + len(columns))
        text_columns = 1 if html else first_figure
        start += len(columns)
        rows = [
            row[:text_columns] + row[group_cells]
            for row in table.rows
            if any(cell.value is not None for cell in row[group_cells])
        ]
        heads = ["run", *table.options][:text_columns] + [column.name for column in columns]
        html += f"<h4>{escape(group)}</h4>{html_table(heads, rows, text_columns)}"
    return html


def html_table(
    heads: list[str], rows: list[list[Cell]], text_columns: int, groups: Sequence[tuple[str, int]] = ()
) -> str:
    """The first `text_columns` columns hold text, the others figures. `groups`: headings above those of the columns,
    each with the number of columns below it."""
    head = "".join(
        f'<th data-column="{k}"{_classes(text=k < text_columns)}>{escape(name)}</th>' for k, name in enumerate(heads)
    )
    body = "".join(
        f"<tr>{''.join(_html_cell(cell, is_text=k < text_columns) for k, cell in enumerate(row))}</tr>" for row in rows
    )
    above = "".join(f'<th colspan="{span}">{escape(name)}</th>' for name, span in groups)
    head_rows = (f'<tr class="groups">{above}</tr>' if above else "") + f"<tr>{head}</tr>"
    return f'<div class="scroll"><table class="sortable"><thead>{head_rows}</thead><tbody>{body}</tbody></table></div>'


def _html_cell(cell: Cell, is_text: bool) -> str:
    value = cell.text if cell.value is None and cell.text != "–" else cell.value
    data = "" if value is None else f' data-value="{escape(str(value))}"'
    tooltip = f' title="{escape(cell.tooltip)}"' if cell.tooltip else ""
    spread = f"<small>{escape(cell.spread)}</small>" if cell.spread else ""
    return f"<td{_classes(best=cell.is_best, text=is_text)}{data}{tooltip}>{escape(cell.text)}{spread}</td>"


def _classes(**switches: bool) -> str:
    """The attribute with the names of the switches that are on."""
    names = " ".join(name for name, on in switches.items() if on)
    return f' class="{names}"' if names else ""
