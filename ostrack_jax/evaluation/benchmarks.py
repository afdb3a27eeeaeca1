"""What each benchmark consists of, and where its frames and annotations lie.

A benchmark is one declaration: how its sequences are found, how many there are, how it marks absent
targets, and the rule that its published numbers follow. Boxes are used as written, neither shifted
nor clipped.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from ostrack_jax.evaluation import metrics
from ostrack_jax.evaluation.layouts import folders, got10k, lasot, masks, ranges, trackingnet
from ostrack_jax.evaluation.videos import Candidate, Video

__all__ = ["BENCHMARKS", "Benchmark", "Candidate", "Selection", "Video", "choose", "select"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
  """Declare a benchmark.

  find: gives its candidates under a root folder, without looking whether they are complete; raises
    FileNotFoundError or ValueError where the root cannot be the benchmark's.
  rule: a name in metrics.RULES. layout: what the root must look like, in words.
  absent: how a frame without the target is told, in words.
  expected: how many sequences it has; None where a folder decides.
  result_folder: the folder for its result files below those of a tracker, as the official code has
    it; "" for none.
  has_attributes: whether sequences have attributes where the root holds the files for them.
  """

  name: str
  rule: str
  layout: str
  find: Callable[[pathlib.Path], list[Candidate]]
  absent: str = ""
  expected: int | None = None
  result_folder: str = ""
  has_attributes: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
  """The sequences that a run covers.

  declared: how many the whole benchmark has. missing: names that were looked for, to the reason.
  """

  videos: tuple[Video, ...]
  declared: int
  missing: dict[str, str]


_LASOT_LAYOUT = (
  "<root>/<class>/<name>/ or <root>/<name>/ with img/00000001.jpg, ..., groundtruth.txt, "
  "full_occlusion.txt and out_of_view.txt"
)
_LASOT_ABSENT = "full_occlusion.txt or out_of_view.txt says 1"

_DECLARATIONS = (
  Benchmark(
    name="lasot",
    rule="pytracking_lasot",
    layout=_LASOT_LAYOUT,
    find=lasot.find_lasot,
    absent=_LASOT_ABSENT,
    expected=280,
  ),
  Benchmark(
    name="lasot_ext",
    rule="pytracking",
    layout=_LASOT_LAYOUT,
    find=lasot.find_lasot_ext,
    absent=_LASOT_ABSENT,
    expected=150,
  ),
  Benchmark(
    name="trackingnet",
    rule="trackingnet",
    layout="<root>/TEST/frames/<name>/0.jpg, ... and <root>/TEST/anno/<name>.txt",
    find=trackingnet.find_test,
    absent="held back, like every box but the first",
    expected=511,
    result_folder="trackingnet",
  ),
  Benchmark(
    name="got10k_test",
    rule="got10k",
    layout="<root>/test/list.txt and <root>/test/<name>/ with 00000001.jpg, ... and groundtruth.txt",
    find=got10k.find_test,
    absent="held back, like every box but the first",
    expected=180,
    result_folder="got10k",
  ),
  Benchmark(
    name="got10k_val",
    rule="got10k",
    layout="<root>/val/list.txt and <root>/val/<name>/ with 00000001.jpg, ..., groundtruth.txt "
    "and cover.label",
    find=got10k.find_val,
    absent="cover.label says 0",
    expected=180,
    result_folder="got10k",
    has_attributes=True,
  ),
  Benchmark(
    name="nfs",
    rule="pytracking",
    layout="<root>/sequences/<name>/00001.jpg, ... and <root>/anno/nfs_<name>.txt, 30 frames a second",
    find=ranges.find_nfs,
    absent="not told",
    expected=100,
  ),
  Benchmark(
    name="uav123",
    rule="pytracking_uav",
    layout="<root>/data_seq/UAV123/<folder>/000001.jpg, ... and <root>/anno/UAV123/<name>.txt",
    find=ranges.find_uav123,
    absent="NaN",
    expected=123,
    has_attributes=True,
  ),
  Benchmark(
    name="uav20l",
    rule="absent_hits",
    layout="<root>/data_seq/UAV123/<name>/000001.jpg, ... and <root>/anno/UAV20L/<name>.txt",
    find=ranges.find_uav20l,
    absent="NaN",
    expected=20,
    has_attributes=True,
  ),
  Benchmark(
    name="tnl2k",
    rule="pytracking",
    layout="<root>/<name>/imgs/ with frames and <root>/<name>/groundtruth.txt",
    find=folders.find_tnl2k,
    absent="a box without width or height",
    expected=700,
  ),
  Benchmark(
    name="otb",
    rule="otb",
    layout="<root>/<name>/img/0001.jpg, ... and <root>/<name>/groundtruth_rect.txt",
    find=ranges.find_otb,
    absent="not told",
    expected=100,
  ),
  Benchmark(
    name="davis",
    rule="visible",
    layout="<root>/JPEGImages/480p/<video>/00000.jpg, ... and "
    "<root>/Annotations/480p/<video>/00000.png, ...",
    find=masks.find_davis,
    absent="no pixel of the object in the mask",
  ),
  Benchmark(
    name="vot",
    rule="visible",
    layout="<root>/<name>/color/00000001.jpg, ... and <root>/<name>/groundtruth.txt, polygons or "
    "boxes; <root>/list.txt names the sequences, if it is there",
    find=folders.find_vot,
    absent="NaN",
  ),
  Benchmark(
    name="folder",
    rule="visible",
    layout="<root>/<name>/ with frames in it or in img/, and "
    f"{' or '.join(folders.ANNOTATION_NAMES)}",
    find=folders.find_any,
    absent="NaN, a box without width or height, or is_lost in the sixth of six columns",
  ),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _DECLARATIONS}


def choose(names: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
  """Return the wanted of `names` (all, if None) in their order.

  Raises ValueError for a wanted name that does not occur.
  """
  if wanted is None:
    return list(names)
  unknown = sorted(set(wanted) - set(names))
  if unknown:
    raise ValueError(
      f"unknown sequence {', '.join(unknown)}; expected some of {', '.join(list(names)[:5])}, ..."
    )
  return [name for name in names if name in wanted]


def select(
  benchmark: Benchmark,
  root: pathlib.Path,
  *,
  sequences: Sequence[str] | None = None,
  limit: int | None = None,
  allow_missing: bool = False,
) -> Selection:
  """Find and read the annotations of a benchmark's sequences, before any of them is tracked.

  Args:
    root: the folder that holds the benchmark; see Benchmark.layout.
    sequences: the names to cover; all of them if None.
    limit: stop after so many complete sequences.
    allow_missing: leave out incomplete sequences instead of raising.

  Raises FileNotFoundError for a missing root, for incomplete sequences (each named with what it
  lacks), for fewer sequences than the benchmark has unless only some are wanted, and where nothing
  is left; ValueError for more of them, for two of one name, for unknown names and a limit below one.
  """
  if not root.is_dir():
    raise FileNotFoundError(f"{root} is not a folder; expected {benchmark.layout}")
  found = benchmark.find(root)
  candidates = {candidate.name: candidate for candidate in found}
  if len(candidates) < len(found):
    names = [candidate.name for candidate in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    raise ValueError(
      f"{root} holds several sequences named {', '.join(repeated)}; rename them, "
      "or give a root with only one of them"
    )
  if not candidates:
    raise FileNotFoundError(f"{root} holds no sequence; expected {benchmark.layout}")
  if limit is not None and limit < 1:
    raise ValueError(f"limit {limit} leaves nothing to do; expected at least 1")
  whole = sequences is None and limit is None
  lacking = (benchmark.expected or len(candidates)) - len(candidates) if whole else 0
  if lacking < 0:
    raise ValueError(
      f"{root} names {len(candidates)} sequences, but {benchmark.name} has {benchmark.expected}; "
      "take out what does not belong there, or choose with --sequences"
    )
  videos: list[Video] = []
  missing: dict[str, str] = {}
  for name in choose(list(candidates), sequences):
    if len(videos) == limit:
      break
    try:
      video = candidates[name].read()
      if not metrics.usable_boxes(video.boxes_xywh[:1])[0]:
        raise ValueError("the first frame has no box to start from")
      videos.append(video)
    except (OSError, ValueError) as error:
      missing[name] = str(error)
  if not videos and missing and allow_missing:
    raise FileNotFoundError(
      f"none of {len(missing)} sequences is complete under {root}; expected {benchmark.layout}"
    )
  problems = []
  if missing:
    problems.append(
      f"{len(missing)} of {len(missing) + len(videos)} sequences are incomplete under {root}"
    )
  if lacking:
    problems.append(f"{root} names {len(candidates)} of {benchmark.expected} sequences")
  if problems and not allow_missing:
    lines = "".join(f"\n  {name}: {reason}" for name, reason in missing.items())
    raise FileNotFoundError(
      f"{' and '.join(problems)}; complete them, or pass --allow_missing to leave them out"
      f"{':' if lines else ''}{lines}"
    )
  if lacking:
    missing[f"{lacking} without a name"] = problems[-1]
  declared = benchmark.expected or len(candidates)
  return Selection(videos=tuple(videos), declared=declared, missing=missing)
