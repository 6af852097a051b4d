"""A plot as a Vega-Lite specification: drawn by the page, or here as SVG."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import altair as alt

from bert_infer.files import caches

THEMES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "templates" / "themes.json").read_text("utf-8")
)
"""The colours of the page and its plots, light and dark."""

SERIES = 8
"""How many lines or groups have colours that can be told apart."""
_WIDTH, _HEIGHT = 640, 300


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        title: says what is drawn.
        note: says how to read it.
        spec: Vega-Lite's; the colours come from the theme.
    """

    title: str
    note: str
    spec: dict[str, Any]

    def as_svg(self) -> str:
        """Return the plot on light ground."""
        import vl_convert

        colours = THEMES["light"]
        config = theme("light") | {"background": colours["paper"], "padding": 16}
        svg: str = vl_convert.vegalite_to_svg(self.spec, vl_version=vega_lite(), config=config)
        return svg

    @property
    def for_page(self) -> dict[str, Any]:
        """The specification, as wide as the place it is put into."""
        return self.spec | {"width": "container"}


def vega_lite() -> str:
    """Return the version of Vega-Lite that specifications are made for: 6.4."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def javascript() -> str:
    """Return Vega, Vega-Lite and vega-embed in one script, safe inside a page.

    Bundling them takes seconds, so the script is kept in the user's cache.
    """
    made_by = f"vega-lite-{vega_lite()}-vl-convert-{version('vl-convert-python')}"
    path = caches.path_of("scripts", f"{made_by}.js")
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text("utf-8")
    script = _bundled()
    caches.keep(path, lambda beside: beside.write_text(script, "utf-8"))
    return script


def _bundled() -> str:
    import vl_convert

    bundle: str = vl_convert.javascript_bundle(vl_version=vega_lite())  # type: ignore[call-arg]  # its stub lacks the default
    return bundle.replace("</script", r"<\/script")


def theme(name: str) -> dict[str, Any]:
    """Return Vega's configuration of a theme, ``light`` or ``dark``."""
    colours = THEMES[name]
    fonts = {"labelFont": colours["font"], "titleFont": colours["font"]}
    words = {"labelColor": colours["muted"], "titleColor": colours["muted"], **fonts}
    words |= {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    return {
        "background": "transparent",
        "font": colours["font"],
        "view": {"stroke": None},
        "axis": {
            **words,
            "domainColor": colours["rule"],
            "tickColor": colours["rule"],
            "gridColor": colours["grid"],
            "titlePadding": 10,
            "labelPadding": 6,
        },
        "legend": {
            **words,
            "symbolStrokeWidth": 0,
            "symbolOpacity": 1,
            "labelLimit": 300,
            "orient": "top",
        },
        "range": {"category": colours["series"]},
        "mark": {"color": colours["series"][0]},
        "text": {"color": colours["ink"], "font": colours["font"], "fontSize": 12},
        "style": {
            "front": {"color": colours["muted"], "strokeWidth": 1.25, "strokeDash": [5, 4]},
            "best": {"color": colours["ink"], "strokeWidth": 1.5},
            "name": {"color": colours["muted"]},
            "each": {"color": colours["ink"]},
        },
    }


def data(values: list[dict[str, Any]]) -> alt.InlineData:
    """Return values as a chart's data."""
    return alt.InlineData(values=values)


def spec(chart: alt.TopLevelMixin, height: int = _HEIGHT) -> dict[str, Any]:
    """Return a chart's specification without a configuration, which is the theme's."""
    found: dict[str, Any] = chart.properties(width=_WIDTH, height=height).to_dict()
    return {key: value for key, value in found.items() if key != "config"}
