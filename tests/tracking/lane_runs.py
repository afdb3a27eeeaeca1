"""What several tests of lanes share: lengths of sequences, a small network, and how either tracks."""

import contextlib

import jax

from ostrack_jax.tracking import engine, frames, sharing
from ostrack_jax.tracking.tracker import Tracker

LENGTHS = (5, 2, 7, 1, 4, 3, 6)
# Compiling is most of the time here.
SMALL = {"width": 16, "depth": 1, "num_heads": 1, "head_channels": 8, "elimination_layers": (0,)}


def track(tracker, sequences, **options):
  plan = sharing.plan_lanes(sequences, [len(s.frames) for s in sequences], tracker.lanes)
  return {result.sequence.name: result for result in tracker.track(plan, **options)}


def alone(checkpoint, sequence):
  """Track with Tracker; start every frame from the given boxes if there are some."""
  tracker = Tracker(checkpoint)
  if sequence.start_boxes_xywh is not None:
    tracker = engine.TeacherForced(tracker, sequence.start_boxes_xywh)
  images = (frames.read_image(path) for path in sequence.frames)
  found = engine.track_sequence(tracker, images, sequence.init_box_xywh)
  return found.boxes_xywh, found.scores


@contextlib.contextmanager
def compilations():
  """Give a list that grows with every program that XLA compiles."""
  compiled = []

  def listen(event, duration, **_):
    if event.endswith("backend_compile_duration"):
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
