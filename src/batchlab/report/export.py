"""SVG and PNG files of the figures, and the script that draws them on the page; no browser needed.

Drawing is most of a report's time, and holds Python's lock: it is spread over processes of its own
(`python -m batchlab.report.export`), which load nothing but the drawing.
"""

import json
import os
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import cache

import vl_convert

VEGA_LITE = "6.4"
PNG_SCALE = 2.0
WORKERS = min(os.cpu_count() or 1, 4)


def picture(spec: str) -> tuple[str, bytes]:
    """A specification as SVG, and as PNG of twice the size; `ValueError` where Vega cannot."""
    # A figure carries its data: nothing may be fetched.
    svg = str(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE, allowed_base_urls=[]))
    # Converting is far cheaper than drawing once more.
    return svg, bytes(vl_convert.svg_to_png(svg, scale=PNG_SCALE))


def pictures(specs: Sequence[str], pool: Executor) -> Iterator[tuple[str, bytes]]:
    """All specifications' pictures, in their order; drawn while the caller does something else.

    The pool's threads, `WORKERS` of them, each wait for a process.
    """
    shares = [share for i in range(WORKERS) if (share := specs[i::WORKERS])]
    drawn = [pool.submit(_apart, share) for share in shares]
    return (drawn[i % WORKERS].result()[i // WORKERS] for i in range(len(specs)))


def _apart(specs: Sequence[str]) -> list[tuple[str, bytes]]:
    command = [sys.executable, "-m", "batchlab.report.export"]
    done = subprocess.run(
        command, input=json.dumps(specs).encode(), capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the figures could not be drawn:\n{done.stderr.decode()}")
    return [(svg, b64decode(png)) for svg, png in json.loads(done.stdout)]


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that can stand inside a page."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return str(script).replace("</script", r"<\/script").replace("<!--", r"<\!--")


if __name__ == "__main__":
    drawn = [picture(spec) for spec in json.load(sys.stdin)]
    json.dump([(svg, b64encode(png).decode()) for svg, png in drawn], sys.stdout)
