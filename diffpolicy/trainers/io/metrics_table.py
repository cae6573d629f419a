"""Tables of metrics: csv files that grow by rows."""

import csv
import errno
import io
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffpolicy.trainers.io import files


class MetricsTable:
    """A csv file that grows by rows; a resumed run drops the rows it repeats.

    Attributes:
        path: the file.
        frames: environment steps of the last row that a resumed run keeps.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frames = 0
        self._columns: list[str] = []
        self._waiting: list[Mapping[str, float]] = []

    def add(self, row: Mapping[str, float]) -> None:
        """Take a row, for the next :meth:`write`."""
        self._waiting.append(row)

    def write(self) -> None:
        """Write the rows that wait; metrics that were not there before get a column.

        Raises:
            OSError: if the disk does not take them. The file is as before, and the rows wait.
        """
        new = [name for row in self._waiting for name in row if name not in self._columns]
        if new:
            earlier = self._earlier_rows()
            known = earlier[0] if earlier else self._columns
            columns = list(dict.fromkeys([*known, *new]))
            header = {name: name for name in columns}
            content = _text(columns, [header, *earlier, *self._waiting])
            files.write_atomically(self.path, lambda path: path.write_bytes(content))
            self._columns = columns
        else:
            _append(self.path, _text(self._columns, self._waiting))
        self.frames = int(self._waiting[-1]["frames"])
        self._waiting.clear()

    def _earlier_rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        # A run that is killed may leave the beginning of a row.
        text, end, _ = self.path.read_text(encoding="utf-8").rpartition("\n")
        rows = csv.DictReader(io.StringIO(text + end))
        return [row for row in rows if int(row["frames"]) <= self.frames]


def _append(path: Path, content: bytes) -> None:
    """Append to a file all or nothing; raises OSError if the disk does not take it."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


def _text(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns)
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue().encode()


def _cell(value: float | str) -> float | str:
    """An empty cell stands for "no value", for example when no episode has ended."""
    return "" if isinstance(value, float) and math.isnan(value) else value
