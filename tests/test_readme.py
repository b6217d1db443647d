"""The README's tree names every file there is, and none that is not."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "batchlab"


def test_the_tree_is_that_of_the_source() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("## The tree") : text.index("## How a verdict")]
    named = set(re.findall(r"\b(\w+)\.py\b", tree))
    # `base` of a room is told of in the room's own line.
    files = {path.stem for path in SOURCE.rglob("*.py")} - {"base", "__init__", "__main__"}
    benchmarks = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert named - {"base"} == files | benchmarks
