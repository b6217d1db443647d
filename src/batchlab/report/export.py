"""SVG and PNG files of the figures, and the script that draws them on the page; no browser needed.

Drawing is most of a report's time, and holds Python's lock: it is spread over processes of its own
(`python -m batchlab.report.export`), which load nothing but the drawing.
"""

import json
import os
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import vl_convert

from batchlab.documents import write

VEGA_LITE = "6.4"
PNG_SCALE = 2.0
WORKERS = min(os.cpu_count() or 1, 4)


def draw(specs: Mapping[str, str], folder: Path, pool: Executor) -> list[Future[None]]:
    """Write each specification's SVG and PNG under its name; what is there already stays.

    The pool's threads, `WORKERS` of them, each wait for a process, so that the caller can do
    something else meanwhile. The results raise `ValueError` where Vega cannot draw.
    """
    missing = [name for name, spec in specs.items() if not _there(folder / name, spec)]
    shares = [share for i in range(WORKERS) if (share := missing[i::WORKERS])]
    return [pool.submit(_draw, {name: specs[name] for name in share}, folder) for share in shares]


def picture(spec: str) -> tuple[str, bytes]:
    """A specification as SVG, and as PNG of twice the size; `ValueError` where Vega cannot."""
    # A figure carries its data: nothing may be fetched.
    svg = str(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE, allowed_base_urls=[]))
    # Converting is far cheaper than drawing once more.
    return svg, bytes(vl_convert.svg_to_png(svg, scale=PNG_SCALE))


def _draw(specs: Mapping[str, str], folder: Path) -> None:
    command = [sys.executable, "-m", "batchlab.report.export"]
    asked = json.dumps(list(specs.values())).encode()
    done = subprocess.run(command, input=asked, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"figures that cannot be drawn:\n{done.stderr.decode()}")
    for (name, spec), (svg, png) in zip(specs.items(), json.loads(done.stdout), strict=True):
        write(folder / f"{name}.png", b64decode(png))
        write(folder / f"{name}.svg", svg + _signature(spec))  # last: it vouches for both


def _signature(spec: str) -> str:
    drawn_from = f"{version('vl-convert-python')} {PNG_SCALE} {spec}"
    return f"\n<!-- {sha256(drawn_from.encode()).hexdigest()} -->\n"


def _there(path: Path, spec: str) -> bool:
    svg, png = (path.with_name(f"{path.name}.{kind}") for kind in ("svg", "png"))
    return png.exists() and svg.exists() and svg.read_text("utf-8").endswith(_signature(spec))


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that can stand inside a page."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return str(script).replace("</script", r"<\/script").replace("<!--", r"<\!--")


if __name__ == "__main__":
    drawn = [picture(spec) for spec in json.load(sys.stdin)]
    json.dump([(svg, b64encode(png).decode()) for svg, png in drawn], sys.stdout)
