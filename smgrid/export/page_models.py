"""The models of the interactive page: menu, slider, map and time series, on Bokeh.

What they do when the page is used is in the scripts beside this module.
"""

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from smgrid.export.drawing import VERMILION, VOLUME

# What the browser may use: scripts, styles and images in the file itself, and nothing else.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
_TEMPLATE = (
    "{% block preamble %}"
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    "{% endblock %}"
)


def render(
    spec: Mapping[str, Any], layers: Mapping[str, Sequence[Any]], title: str, about: tuple[str, str]
) -> str:
    """Return the page as text.

    Parameters
    ----------
    spec
        What ``page_place.js`` and ``page_update.js`` read: ``dates``, ``variables``, ``missing``,
        ``frame``, ``nodes``, ``stations``, ``flags`` and the name of the ``band``; the date shown
        ``first``.
    layers
        For every variable, and for flags, one (y, x) uint16 image per date.
    title
        Heading, plain text.
    about
        HTML above and below the map.
    """
    from bokeh.document import Document
    from bokeh.embed import file_html
    from bokeh.layouts import column, row
    from bokeh.models import (
        ColumnDataSource,
        CustomJS,
        CustomJSTickFormatter,
        Div,
        Select,
        Slider,
    )
    from bokeh.resources import INLINE

    titles = {name: said.get("title") for name, said in spec["variables"].items()}
    names = [(name, title) for name, title in titles.items() if title]
    menu = Select(title="Variable", value=names[0][0], options=names, name="variable", width=370)
    last = len(spec["dates"]) - 1
    labels = [date["label"] for date in spec["dates"]]
    moment = CustomJSTickFormatter(args={"labels": labels}, code="return labels[tick] ?? '';")
    slider = Slider(start=0, end=max(1, last), value=spec["first"], step=1, title="Date")
    slider.update(format=moment, name="date", width=530, disabled=last == 0)
    models = {"spec": json.dumps(spec), "menu": menu, "slider": slider}
    models["layers"] = ColumnDataSource(data=dict(layers))
    map_figure = _map_figure(spec["frame"], spec["stations"], models)
    series_figure = _series_figure(spec["stations"], spec["band"], models)
    # Names of flags come with the map: they are shown as text and never become elements.
    models["said"] = Div(text="", name="flags", render_as_text=True, width=530)
    update = CustomJS(args=models, code=_script("page_update.js"))
    slider.js_on_change("value", update)
    menu.js_on_change("value", update)
    map_figure.js_on_event("tap", update)
    heading = Div(text=f"<h2 style='margin:0'>{html.escape(title)}</h2>{about[0]}", width=1160)
    document = Document(title=title)
    document.add_root(
        column(
            heading,
            row(menu, slider),
            row(map_figure, column(series_figure, models["said"], Div(text=about[1], width=530))),
        )
    )
    document.js_on_event("document_ready", update)
    return str(file_html(document, INLINE, title, template=_TEMPLATE))


def _map_figure(
    frame: Mapping[str, Any], stations: Sequence[Mapping[str, Any]], models: dict[str, Any]
) -> Any:
    """Return the map, and add what the script changes of it to the models."""
    from bokeh.models import ColorBar, ColumnDataSource, LinearColorMapper, WheelZoomTool
    from bokeh.plotting import figure

    width, height = frame["columns"] * frame["dx"], frame["rows"] * frame["dy"]
    scale = 500 / max(width, height)
    x, y = (frame["left"], frame["left"] + width), (frame["bottom"], frame["bottom"] + height)
    plot = figure(name="map", x_range=x, y_range=y, tools="pan,box_zoom,reset,save", title=" ")
    plot.update(frame_width=max(160, round(scale * width)))
    plot.update(frame_height=max(160, round(scale * height)))
    plot.xaxis.axis_label, plot.yaxis.axis_label = frame["labels"]
    empty = np.full((frame["rows"], frame["columns"]), np.nan, np.float32)
    image = ColumnDataSource(
        data={"image": [empty], "x": [x[0]], "y": [y[0]], "dw": [width], "dh": [height]},
        name="image",
    )
    mapper = LinearColorMapper(palette=["#000000"], low=0, high=1, nan_color="#d9d9d9")
    renderer = plot.image("image", "x", "y", "dw", "dh", source=image, color_mapper=mapper)
    plot.add_layout(ColorBar(color_mapper=mapper), "right")
    middle = {"column": [frame["columns"] // 2], "row": [frame["rows"] // 2], "x": [x[0]]}
    picked = ColumnDataSource(data={**middle, "y": [y[0]]}, name="picked")
    plot.scatter("x", "y", source=picked, marker="cross", size=16, color=VERMILION, line_width=2)
    if stations:
        where = {key: [station[key] for station in stations] for key in ("x", "y", "name")}
        marks = {"marker": "circle", "size": 9, "fill_color": "white", "line_color": "black"}
        plot.scatter("x", "y", source=ColumnDataSource(data=where), line_width=2, **marks)
    wheel = WheelZoomTool()
    plot.add_tools(_hover(renderer, models), wheel)
    plot.toolbar.active_scroll = wheel
    plot.toolbar.logo = None
    plot.xaxis.formatter.use_scientific = plot.yaxis.formatter.use_scientific = False
    models |= {"image": image, "mapper": mapper, "picked": picked, "map": plot}
    return plot


def _hover(renderer: Any, models: Mapping[str, Any]) -> Any:
    from bokeh.models import CustomJSHover, HoverTool

    args = {"spec": models["spec"], "menu": models["menu"]}
    read = CustomJSHover(args=args, code=_script("page_hover.js"))
    return HoverTool(
        renderers=[renderer],
        tooltips=[("value", "@image{value}"), ("x, y", "$x{coordinates}"), ("place", "$x{place}")],
        formatters={"@image": read, "$x": read},
    )


def _series_figure(stations: Sequence[Any], band: str, models: dict[str, Any]) -> Any:
    """Return the time series of a pixel, and add what the script changes of it to the models."""
    from bokeh.models import ColumnDataSource, Span
    from bokeh.plotting import figure

    tools = "pan,box_zoom,wheel_zoom,reset,save"
    plot = figure(name="series", x_axis_type="datetime", tools=tools, title=" ")
    plot.update(width=530, height=330)
    plot.yaxis.axis_label = f"soil moisture ({VOLUME})"
    columns = ("time", "value", "low", "high", "fill")
    pixel = ColumnDataSource(data={n: [] for n in columns}, name="pixel")
    station = ColumnDataSource(data={"time": [], "value": []}, name="station")
    ends = {"y0": "low", "y1": "high", "line_width": 6, "line_alpha": 0.25}
    plot.segment(x0="time", x1="time", source=pixel, legend_label=band, **ends)
    plot.line("time", "value", source=pixel, legend_label="map")
    plot.scatter("time", "value", source=pixel, size=6, fill_color="fill")
    if stations:
        plot.line("time", "value", source=station, color=VERMILION, legend_label="station")
    now = Span(dimension="height", line_dash="dotted", line_color="black")
    plot.add_layout(now)
    plot.legend.orientation = "horizontal"
    plot.add_layout(plot.legend[0], "below")  # inside it would hide values
    plot.toolbar.logo = None
    models |= {"pixel": pixel, "station": station, "now": now, "series": plot}
    return plot


def _script(name: str) -> str:
    folder = files("smgrid.export")
    return "\n".join(folder.joinpath(n).read_text("utf-8") for n in ("page_place.js", name))
