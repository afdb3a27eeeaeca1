"""What one visitor of the page has: a clip, the objects drawn in it, and the results of the last track."""

import contextlib
import dataclasses
import itertools
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterator

from ostrack_jax.tracking.weights import TrackableCheckpoint
from ostrack_jax.web.clips import Clip, Limits, Progress, check_room, open_clip
from ostrack_jax.web.tracks import Follower, Start, Tracks, check_eliminates


class Session:
  """A visitor's clip, objects and results, in a folder of their own, which goes when the page is closed.

  Args:
    root: the server's temporary folder.
  """

  def __init__(self, root: pathlib.Path, limits: Limits):
    self.clip: Clip | None = None
    self.starts: list[Start] = []
    self._root, self._limits = root, limits
    self._folder: pathlib.Path | None = None
    self._numbers = itertools.count()
    self._lock = threading.Lock()
    self._stop = threading.Event()
    self._is_busy = self._is_closed = False

  def open(
    self, source: pathlib.Path, name: str, progress: Progress, is_upload: bool = False
  ) -> Clip:
    """Take another video; the objects of the one before are forgotten.

    Args:
      source: a video or a folder of images.
      name: what the visitor calls it.
      is_upload: whether it is the visitor's own file, which then goes with the session, or at once if it
        cannot be used.

    Raises:
      ValueError: it cannot be used, the temporary folder is full, or the page was closed.
    """
    self.forget_stop()
    try:
      with self._at_work() as folder:
        check_room(self._root, self._limits.max_temp_mb)
        place = folder / f"clip{next(self._numbers)}"
        kept = place.with_suffix(source.suffix) if is_upload else source
        try:
          if is_upload:
            if not source.exists():
              # Gradio keeps uploads of the same content in one place; another visitor was first.
              raise ValueError(f"{name} is no longer there; upload it again")
            shutil.move(source, kept)
          clip = open_clip(kept, name, place, self._limits.max_frames, self._watched(progress))
        except BaseException:
          if is_upload:
            kept.unlink(missing_ok=True)
          raise
        self.clip, self.starts = clip, []
        self._remove_but(folder, place, kept)
        return clip
    finally:
      if is_upload:
        source.unlink(missing_ok=True)
        # Gradio puts every upload into a folder of its own.
        with contextlib.suppress(OSError):
          source.parent.rmdir()

  def _watched(self, progress: Progress) -> Progress:
    def report(share: float | None, words: str) -> None:
      if self._stop.is_set():
        raise ValueError("stopped before the video was read")
      progress(share, words)

    return report

  def opened(self) -> Clip:
    """Return the clip; raises ValueError where there is none yet."""
    if self.clip is None:
      raise ValueError("choose a video first: upload one, or take an example")
    return self.clip

  def add(self, frame: int, box_xywh) -> Start:
    """Add an object.

    Raises:
      ValueError: there is no clip, the box cannot be used, or there are as many objects as there may be.
    """
    clip = self.opened()
    if not 0 <= frame < clip.count:
      raise ValueError(f"there is no frame {frame}; {clip.name} has frames 0 to {clip.count - 1}")
    if len(self.starts) >= self._limits.max_objects:
      raise ValueError(
        f"there are {len(self.starts)} objects already, as many as this page follows at once; remove one first"
      )
    start = Start(frame, clip.check_box(box_xywh))
    # Two boxes may come at once.
    with self._lock:
      # In the order in which the tracker numbers them; those of one frame in the order of drawing.
      self.starts = sorted([*self.starts, start], key=lambda one: one.frame)
    return start

  def remove(self, number: int) -> None:
    """Remove an object, if there still is one of that number."""
    with self._lock:
      self.starts = [start for index, start in enumerate(self.starts) if index != number]

  def stop(self) -> None:
    """End the track that runs, which then completes its files, or the next one, which may wait for others'."""
    self._stop.set()

  def forget_stop(self) -> None:
    """Begin anew after a stop that came when everything had ended."""
    with self._lock:
      if not (self._is_busy or self._is_closed):
        self._stop.clear()

  def track(
    self,
    checkpoint: TrackableCheckpoint,
    progress: Progress,
    elimination_of: int | None = None,
    search_factor: float | None = None,
  ) -> Tracks:
    """Track the objects through the clip.

    Args:
      elimination_of: the object along whose track a video of eliminated candidates is written; None for no
        such video. It is tracked a second time for it.
      search_factor: as for Tracker.

    Raises:
      ValueError: there is no clip or no object, no such object or none that anything could be eliminated
        for, frames cannot be read, or it was stopped or the page closed before it began.
      OSError: the files cannot be written.
    """
    clip, starts = self.opened(), list(self.starts)
    if not starts:
      raise ValueError("draw a box around a target first")
    if elimination_of is not None:
      check_eliminates(checkpoint)
      if not 0 <= elimination_of < len(starts):
        raise ValueError(f"there is no object {elimination_of} to show eliminated candidates of")
      if starts[elimination_of].frame + 1 >= clip.count:
        raise ValueError(
          f"object {elimination_of} starts in the last frame, so nothing is eliminated for it"
        )
    with self._at_work() as folder:
      if self._stop.is_set():
        raise ValueError("stopped before the track began")
      check_room(self._root, self._limits.max_temp_mb)
      place = folder / f"tracks{next(self._numbers)}"
      place.mkdir()
      self._remove_but(folder, place, *folder.glob("clip*"))
      try:
        follower = Follower(
          checkpoint=checkpoint,
          search_factor=search_factor,
          folder=place,
          progress=progress,
          stop=self._stop,
        )
        tracks = follower.follow(clip, starts)
        # Who stopped the track waits for nothing more.
        if elimination_of is not None and not tracks.was_stopped:
          path = follower.show_elimination(clip, starts[elimination_of])
          tracks = dataclasses.replace(tracks, elimination=path)
      except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
      return tracks

  def close(self) -> None:
    """Forget everything and remove the files; what is at work stops at the next frame."""
    with self._lock:
      self._is_closed = True
      self._stop.set()
      if not self._is_busy:
        self._remove()

  def _remove(self) -> None:
    if self._folder is not None:
      shutil.rmtree(self._folder, ignore_errors=True)

  @staticmethod
  def _remove_but(folder: pathlib.Path, *kept: pathlib.Path) -> None:
    for path in folder.iterdir():
      if path in kept:
        continue
      if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
      else:
        path.unlink(missing_ok=True)

  @contextlib.contextmanager
  def _at_work(self) -> Generator[pathlib.Path]:
    """Give the session's folder, which stays until the block ends."""
    with self._lock:
      if self._is_closed:
        raise ValueError("this page was closed; load it again")
      if self._is_busy:
        raise ValueError("this page is at work already; wait for it, or press Stop")
      self._is_busy = True
      if self._folder is None:
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="session-", dir=self._root))
    try:
      yield self._folder
    finally:
      with self._lock:
        self._is_busy = False
        if self._is_closed:
          self._remove()
        else:
          self._stop.clear()


class Sessions:
  """The sessions of all visitors, by the key of their page."""

  def __init__(self, root: pathlib.Path, limits: Limits):
    self.root, self.limits = root, limits
    self._lock = threading.Lock()
    self._by_key: dict[str, Session] = {}

  def of(self, key: str) -> Session:
    """Return a page's session, a new one where there is none yet."""
    with self._lock:
      if key not in self._by_key:
        self._by_key[key] = Session(self.root, self.limits)
      return self._by_key[key]

  def close(self, key: str) -> None:
    """Close a page's session, if there is one."""
    with self._lock:
      session = self._by_key.pop(key, None)
    if session is not None:
      session.close()

  def __iter__(self) -> Iterator[Session]:
    with self._lock:
      return iter(list(self._by_key.values()))
