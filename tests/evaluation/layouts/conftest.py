"""A miniature of a benchmark's tree: empty frames, and annotations as the tests write them."""

import pathlib

import pytest

from ostrack_jax.evaluation import benchmarks


class Tree:
  """Write files below a root, and load a benchmark from it."""

  def __init__(self, root: pathlib.Path):
    self.root = root

  def frames(self, relative, first, last, digits, suffix=".jpg"):
    folder = self.root / relative
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, last + 1):
      (folder / f"{number:0{digits}d}{suffix}").touch()

  def text(self, relative, text):
    path = self.root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

  def boxes(self, relative, count, separator=","):
    """Write `count` boxes whose x is the number of their row, from 1 on."""
    rows = ([f"{i + 1}", "2", "30", "40"] for i in range(count))
    self.text(relative, "".join(separator.join(row) + "\n" for row in rows))

  def select(self, benchmark, *names, **options):
    declared = benchmarks.BENCHMARKS[benchmark]
    return benchmarks.select(declared, self.root, sequences=names or None, **options)

  def video(self, benchmark, name):
    (video,) = self.select(benchmark, name).videos
    assert video.name == name
    assert len(video.frames) == len(video.boxes_xywh)
    return video

  def reason(self, benchmark, name):
    """Return why a sequence cannot be read."""
    with pytest.raises(FileNotFoundError, match="1 of 1 sequences are incomplete") as error:
      self.select(benchmark, name)
    return str(error.value).split(f"\n  {name}: ")[1]


@pytest.fixture
def tree(tmp_path):
  return Tree(tmp_path)
