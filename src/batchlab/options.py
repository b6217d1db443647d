"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Seed = Annotated[int, typer.Option(help="fixes initialisation, data order and draws")]
DataDir = Annotated[
    Path | None, typer.Option(help="where data files are; else BATCHLAB_DATA_DIR, cache, download")
]
Workers = Annotated[int | None, typer.Option(min=1, help="processes; all cores by default")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on standard output")]
