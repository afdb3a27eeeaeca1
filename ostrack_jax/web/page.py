"""The page: what stands where, and what happens when something is clicked. Gradio is known here alone."""

import dataclasses
import functools
import html
import pathlib
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ostrack_jax.loading import Checkpoint
from ostrack_jax.web import views
from ostrack_jax.web.clips import Limits
from ostrack_jax.web.examples import VIDEO_SUFFIXES, Example
from ostrack_jax.web.session import Session, Sessions

_FOLDER = pathlib.Path(__file__).parent
_NOT_SHOWN, _NOTHING = -1, "no"
# Their results stand for the handler's inputs, of which there are none.
_SCROLL = "() => {{ document.querySelector('{}').scrollIntoView({{behavior: 'smooth', block: '{}'}}); return []; }}"
# Fonts of the visitor's own machine: a page that works offline asks no other server.
_FONT = ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """What tracks.

  Attributes:
    label, note: its name, and what follows it in a sentence.
    search_factor: as for Tracker.
  """

  checkpoint: Checkpoint
  label: str
  note: str
  search_factor: float | None = None


def _said(handler):
  """Show what went wrong to the visitor, in the sentence that was raised."""

  @functools.wraps(handler)
  def wrapped(*args, **kwargs):
    try:
      return handler(*args, **kwargs)
    except (ValueError, OSError) as error:
      # Gradio shows messages as HTML.
      raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error

  return wrapped


def _read(name: str) -> str:
  return (_FOLDER / name).read_text(encoding="utf-8")


def _reporting(bar: gr.Progress):
  return lambda share, words: bar(0.0 if share is None else share, desc=words)


def build(network: Network, sessions: Sessions, examples: Sequence[Example]) -> gr.Blocks:
  """Return the page."""

  def mine(request: gr.Request) -> Session:
    return sessions.of(request.session_hash or "")

  with gr.Blocks(title="OSTrack", analytics_enabled=False) as page:
    gr.HTML(
      "<h2>OSTrack</h2><p>Draw a box around anything in a video, and the network follows it. "
      f"The network is <b>{html.escape(network.label)}</b>{html.escape(network.note)}.</p>",
      elem_id="network",
    )
    with gr.Row():
      with gr.Column(scale=1, min_width=280):
        gr.Markdown("### 1. Choose a video")
        upload = gr.File(
          label=f"Your video, up to {sessions.limits.max_upload_mb:g} MB",
          file_types=["video", *VIDEO_SUFFIXES],
          height=140,
          elem_id="upload",
        )
        gallery = gr.Gallery(
          [(one.thumbnail, one.name) for one in examples],
          label="Or an example",
          columns=2,
          height=230,
          allow_preview=False,
          interactive=False,
          buttons=[],
          elem_id="examples",
        )
        clip = gr.HTML(elem_id="clip")
      with gr.Column(scale=2, min_width=420):
        gr.Markdown("### 2. Step to a frame, and draw a box around each target")
        view = gr.HTML(
          value=None,
          html_template=_read("frame_view.html"),
          css_template=_read("frame_view.css"),
          js_on_load=_read("frame_view.js"),
          elem_id="frame",
        )
        slider = gr.Slider(
          0, 1, 0, step=1, label="Frame", visible=False, buttons=[], elem_id="step"
        )
        objects = gr.HTML(js_on_load=_read("object_list.js"), elem_id="objects")
        with gr.Accordion("Give a box by its numbers instead", open=False):
          with gr.Row():
            numbers = [
              gr.Number(label=label, minimum=0, precision=1, min_width=80, elem_id=f"box_{name}")
              for name, label in (
                ("x", "Left (pixels)"), ("y", "Top"), ("w", "Width"), ("h", "Height")
              )
            ]  # fmt: skip
          add = gr.Button("Add this box", elem_id="add")
        gr.Markdown("### 3. Track")
        eliminates = bool(network.checkpoint.model.elimination_layers)
        with gr.Row(equal_height=True):
          elimination = gr.Dropdown(
            [(_NOTHING if eliminates else "this network keeps all", _NOT_SHOWN)],
            value=_NOT_SHOWN,
            label="Also show eliminated candidates",
            interactive=eliminates,
            scale=2,
            elem_id="elimination",
          )
          track = gr.Button("Track", variant="primary", scale=2, elem_id="track")
          stop = gr.Button("Stop", interactive=False, scale=1, elem_id="stop")
        status = gr.HTML(elem_id="status")
    with gr.Column(visible=False, elem_id="results") as results:
      gr.Markdown("### 4. Result")
      with gr.Row():
        with gr.Column(scale=1, min_width=380):
          video = gr.Video(
            label="Tracks", interactive=False, autoplay=False, buttons=[], elem_id="video"
          )
        with gr.Column(scale=1, min_width=380):
          plot = gr.LinePlot(
            x="frame", y="value", color="series", y_lim=[0, 1], x_title="frame", y_title=" ",
            color_title=" ", title="How sure the network is, from 0 to 1", show_label=False, height=360, buttons=[], elem_id="plot",
          )  # fmt: skip
      with gr.Row():
        mp4 = gr.DownloadButton("Download the video (MP4)", elem_id="mp4")
        csv = gr.DownloadButton("Download the boxes (CSV)", elem_id="csv")
      with gr.Column(visible=False) as elimination_part:
        gr.Markdown(
          "### Eliminated candidates\nThe frame; the search region, with the template in its corner; and the region "
          "again after each stage, with the cells that it eliminated in its colour."
        )
        eliminated = gr.Video(show_label=False, interactive=False, buttons=[], elem_id="eliminated")

    drawn = [view, objects, elimination]

    def shown(session: Session, frame: int, chosen: int = _NOT_SHOWN):
      """Return what `drawn` shows after any change."""
      count = len(session.starts)
      choices = [(_NOTHING, _NOT_SHOWN), *((f"of object {n}", n) for n in range(count))]
      return (
        views.frame_view(session, frame),
        views.object_list(session),
        gr.Dropdown(choices=choices, value=chosen if chosen < count else _NOT_SHOWN)
        if eliminates
        else gr.skip(),
      )

    def opened(session: Session):
      clip_now = session.opened()
      return (
        views.clip_line(clip_now),
        gr.Slider(maximum=clip_now.count - 1, value=0, visible=True),
        gr.Column(visible=False),
        "",
        *shown(session, 0),
      )

    fresh = [clip, slider, results, status, *drawn]

    @_said
    def open_upload(path: str, request: gr.Request, bar=gr.Progress()):  # noqa: B008
      session, file = mine(request), pathlib.Path(path)
      session.open(file, file.name, _reporting(bar), is_upload=True)
      return opened(session)

    @_said
    def open_example(request: gr.Request, event: gr.SelectData, bar=gr.Progress()):  # noqa: B008
      session, example = mine(request), examples[event.index]
      session.open(example.source, example.name, _reporting(bar))
      if example.box_xywh is not None:
        session.add(0, example.box_xywh)
      return opened(session)

    @_said
    def step(frame, request: gr.Request):
      return views.frame_view(mine(request), int(frame))

    def added(session: Session, frame: int, box_xywh, chosen: int) -> int:
      """Add an object; return the number that the chosen one has by now."""
      start = session.add(frame, box_xywh)
      return chosen + (chosen >= session.starts.index(start))

    @_said
    def add_drawn(frame, chosen, request: gr.Request, event: gr.EventData):
      session = mine(request)
      # Of the frame that was seen, whatever the slider says by now.
      chosen = added(session, int(event.frame), event.box_xywh, chosen)
      return shown(session, int(frame), chosen)

    @_said
    def add_numbers(frame, chosen, x, y, w, h, request: gr.Request):
      if None in (x, y, w, h):
        raise ValueError("a box needs four numbers: left, top, width, height in pixels")
      session = mine(request)
      return shown(session, int(frame), added(session, int(frame), (x, y, w, h), chosen))

    @_said
    def remove(frame, chosen, request: gr.Request, event: gr.EventData):
      session, number = mine(request), int(event.number)
      session.remove(number)
      chosen = _NOT_SHOWN if chosen == number else chosen - (chosen > number)
      return shown(session, int(frame), chosen)

    @_said
    def go_to(request: gr.Request, event: gr.EventData):
      starts = mine(request).starts
      number = int(event.number)
      return starts[number].frame if 0 <= number < len(starts) else gr.skip()

    def begin(request: gr.Request):
      mine(request).forget_stop()
      return gr.Button(interactive=False), gr.Button(interactive=True), gr.Column(visible=False), ""

    def end():
      return gr.Button(interactive=True), gr.Button(interactive=False)

    @_said
    def follow(chosen, request: gr.Request, bar=gr.Progress()):  # noqa: B008
      session = mine(request)
      tracks = session.track(
        network.checkpoint,
        _reporting(bar),
        None if chosen == _NOT_SHOWN else int(chosen),
        network.search_factor,
      )
      table, colours = views.curves(tracks)
      return (
        views.tracks_line(tracks, session.opened()),
        gr.Column(visible=True),
        tracks.video,
        gr.LinePlot(table, color_map=colours),
        gr.DownloadButton(value=tracks.video),
        gr.DownloadButton(value=tracks.table),
        gr.Column(visible=tracks.elimination is not None),
        tracks.elimination,
      )

    def halt(request: gr.Request):
      mine(request).stop()

    def leave(request: gr.Request):
      sessions.close(request.session_hash or "")

    reading: dict[str, Any] = {
      "concurrency_id": "reading",
      "concurrency_limit": 1,
      "show_progress_on": clip,
    }
    uploaded = upload.upload(open_upload, upload, fresh, **reading)
    # Not `then`, which Gradio does not run after an error.
    for ended in (uploaded.success, uploaded.failure):
      ended(lambda: None, outputs=upload)
    gallery.select(open_example, None, fresh, **reading)
    quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 8}
    slider.change(step, slider, view, trigger_mode="always_last", **quick)
    view.draw(add_drawn, [slider, elimination], drawn, **quick)
    add.click(add_numbers, [slider, elimination, *numbers], drawn, **quick)
    objects.remove(remove, [slider, elimination], drawn, **quick)
    objects.show(go_to, None, slider, **quick)
    started = track.click(begin, None, [track, stop, results, status], **quick)
    started.success(None, js=_SCROLL.format("#status", "center"))
    # One track at a time, for all visitors: further ones wait and see their place.
    tracked = started.then(
      follow,
      elimination,
      [status, results, video, plot, mp4, csv, elimination_part, eliminated],
      concurrency_id="tracking",
      concurrency_limit=1,
      show_progress_on=status,
    )
    for ended in (tracked.success, tracked.failure):
      ended(end, None, [track, stop], **quick)
    tracked.success(None, js=_SCROLL.format("#results", "start"))
    stop.click(halt, **quick)
    page.unload(leave)
  return page


def launch(page: gr.Blocks, limits: Limits, host: str, port: int) -> str:
  """Serve the page until the caller closes it; return its address. OSError where it cannot be bound to."""
  theme = gr.themes.Default(font=_FONT, font_mono=_MONO)
  _, address, _ = page.queue(max_size=32).launch(
    # As in addresses, of which it makes one.
    server_name=f"[{host}]" if ":" in host else host,
    server_port=port,
    prevent_thread_lock=True,
    quiet=True,
    share=False,
    ssr_mode=False,
    footer_links=[],
    max_file_size=round(limits.max_upload_mb * 1e6),
    theme=theme,
    css=_read("page.css"),
  )
  return address
