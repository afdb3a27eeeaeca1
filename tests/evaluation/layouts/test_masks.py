import cv2
import numpy as np
import pytest

from ostrack_jax.evaluation import benchmarks

RED, GREEN, WHITE = (128, 0, 0), (0, 128, 0), (255, 255, 255)


def write(tree, name, masks, resolution="480p/"):
  """Write frames and masks of 40x30; a mask is a list of (colour, x, y, w, h)."""
  for i, objects in enumerate(masks):
    image = np.zeros((30, 40, 3), np.uint8)
    for colour, x, y, w, h in objects:
      image[y : y + h, x : x + w] = colour[::-1]
    for kind, suffix, pixels in (
      ("JPEGImages", "jpg", np.zeros_like(image)),
      ("Annotations", "png", image),
    ):
      path = tree.root / kind / f"{resolution}{name}" / f"{i:05d}.{suffix}"
      path.parent.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(path), pixels)


@pytest.mark.parametrize("resolution", ["480p/", "1080p/", ""])
def test_the_box_is_the_extent_of_the_mask(tree, resolution):
  write(tree, "bear", [[(WHITE, 3, 4, 5, 6)], [], [(WHITE, 0, 0, 1, 1), (WHITE, 39, 29, 1, 1)]],
        resolution)  # fmt: skip
  (video,) = tree.select("davis").videos
  assert video.name == "bear"
  expected = [[3, 4, 5, 6], [np.nan] * 4, [0, 0, 40, 30]]
  np.testing.assert_array_equal(video.boxes_xywh, expected)
  assert [frame.name for frame in video.frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]


def test_every_object_of_the_first_mask_is_a_sequence(tree):
  write(tree, "dogs", [
    [(RED, 1, 2, 3, 4), (GREEN, 10, 11, 12, 13)],
    [(GREEN, 9, 11, 12, 13), (WHITE, 30, 1, 2, 2)],
  ])  # fmt: skip
  one, two = tree.select("davis").videos
  assert (one.name, two.name) == ("dogs_1", "dogs_2")
  np.testing.assert_array_equal(one.boxes_xywh, [[1, 2, 3, 4], [np.nan] * 4])
  np.testing.assert_array_equal(two.boxes_xywh, [[10, 11, 12, 13], [9, 11, 12, 13]])
  assert one.frames == two.frames


def test_the_preferred_resolution_is_taken_of_several(tree):
  write(tree, "bear", [[(WHITE, 3, 4, 5, 6)]])
  write(tree, "bear", [[(WHITE, 1, 1, 1, 1)]], "1080p/")
  assert tree.video("davis", "bear").boxes_xywh[0].tolist() == [3, 4, 5, 6]
  (tree.root / "Annotations/480p").rename(tree.root / "Annotations/720p")
  with pytest.raises(ValueError, match=r"2 resolutions \(720p, 1080p\), none of them 480p"):
    tree.select("davis")


def test_incomplete_videos_are_named(tree):
  write(tree, "bare", [[(WHITE, 3, 4, 5, 6)]] * 2)
  (tree.root / "JPEGImages/480p/bare/00001.jpg").unlink()
  write(tree, "black", [[], [(WHITE, 3, 4, 5, 6)]])
  write(tree, "broken", [[(WHITE, 3, 4, 5, 6)]] * 2)
  (tree.root / "Annotations/480p/broken/00001.png").write_bytes(b"broken")
  write(tree, "good", [[(WHITE, 3, 4, 5, 6)]])
  write(tree, "small", [[(WHITE, 3, 4, 5, 6)]])
  cv2.imwrite(str(tree.root / "JPEGImages/480p/small/00000.jpg"), np.zeros((15, 20, 3), np.uint8))
  selection = tree.select("davis", allow_missing=True)
  assert [video.name for video in selection.videos] == ["good"]
  broken = tree.root / "Annotations/480p/broken/00001.png"
  assert selection.missing == {
    "bare": "1 frames but 2 masks; only one of the two has 00001",
    "black": "no object in the first mask of Annotations/480p/black",
    "broken": f"{broken} is not a readable image",
    "small": "frame and mask 00000 differ in size; take the same resolution",
  }
  with pytest.raises(FileNotFoundError, match="expected JPEGImages/ and Annotations/"):
    benchmarks.select(benchmarks.BENCHMARKS["davis"], tree.root / "JPEGImages")


def test_official_masks_agree_with_opencv(reference_dir):
  root = reference_dir / "data" / "sequences" / "DAVIS2016"
  (video,) = benchmarks.select(benchmarks.BENCHMARKS["davis"], root, sequences=["blackswan"]).videos
  assert len(video.frames) == 50
  for i in (0, 49):
    mask = cv2.imread(str(root / f"Annotations/480p/blackswan/{i:05d}.png"), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    assert video.boxes_xywh[i].tolist() == list(cv2.boundingRect(mask))
