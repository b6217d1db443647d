"""SVG and PNG files of a figure, and the script that draws it on the page; no browser needed."""

from functools import cache

import vl_convert

VEGA_LITE = "6.4"
PNG_SCALE = 2.0


def svg(spec: str) -> str:
    """The specification drawn; `ValueError` where Vega cannot."""
    # A figure carries its data: nothing may be fetched.
    return str(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE, allowed_base_urls=[]))


def png(drawn: str) -> bytes:
    """The SVG as a picture of twice its size in pixels; far cheaper than drawing once more."""
    return bytes(vl_convert.svg_to_png(drawn, scale=PNG_SCALE))


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that can stand inside a page."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return str(script).replace("</script", r"<\/script").replace("<!--", r"<\!--")
