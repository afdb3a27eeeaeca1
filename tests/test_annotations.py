import cv2
import numpy as np
import pytest

from ostrack_jax.annotations import mask_extents, read_boxes, read_rows


@pytest.mark.parametrize("text", ["1,2,3,4\n5,6,7,8\n", "1\t2\t3\t4\r\n5\t6\t7\t8", "1 2  3 4 \n5;6;7;8;\n\n",
                                  "\ufeff1, 2, 3, 4\n5, 6, 7, 8.0"])  # fmt: skip
def test_usual_separators_give_the_same_boxes(tmp_path, text):
  path = tmp_path / "a.txt"
  path.write_text(text, encoding="utf-8", newline="")
  boxes = read_boxes(path)
  np.testing.assert_array_equal(boxes.boxes_xywh, [[1, 2, 3, 4], [5, 6, 7, 8]])
  assert boxes.boxes_xywh.dtype == np.float64
  assert not boxes.absent.any()


def test_nan_and_boxes_without_area_are_absent(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("1,2,3,4\nNaN,NaN,NaN,NaN\n1,2,0,4\n1,2,3,-1\n0,0,1,1\n")
  boxes = read_boxes(path)
  assert boxes.absent.tolist() == [False, True, True, True, False]
  np.testing.assert_array_equal(boxes.boxes_xywh[2], [1, 2, 0, 4])


def test_six_columns_hold_frame_box_and_lost_flag(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("1,10,20,30,40,0\n2,11,21,31,41,1\n")
  boxes = read_boxes(path)
  np.testing.assert_array_equal(boxes.boxes_xywh, [[10, 20, 30, 40], [np.nan] * 4])
  assert boxes.absent.tolist() == [False, True]


def test_eight_columns_give_the_extent_of_the_polygon(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("5,0, 10,5, 5,12, 1,5\n")
  np.testing.assert_array_equal(read_boxes(path).boxes_xywh, [[1, 0, 9, 12]])


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("", "is empty"),
    ("1,2,3,4\n1,2,x,4\n", "line 2: '1,2,x,4'"),
    ("1,2,3,4\n\n1,2,3,4\n", "line 2"),
    ("1,2,3,4\n1,2,3\n", "line 2: 3 columns"),
    ("1,2,3,inf\n", "line 1"),
    ("1,2,3\n", "3 columns; expected one of 4"),
    ("1,0,0,9,9,0\n3,0,0,9,9,0\n", "line 2: frame 3 follows frame 1"),
  ],
)
def test_unreadable_rows_are_named(tmp_path, text, said):
  path = tmp_path / "odd.txt"
  path.write_text(text)
  with pytest.raises(ValueError, match=said) as error:
    read_boxes(path)
  assert "odd.txt" in str(error.value)


def test_binary_and_missing_files_are_named(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"\xff\xd8\xff\xe0")
  with pytest.raises(ValueError, match="not a text file"):
    read_rows(tmp_path / "a.txt")
  with pytest.raises(FileNotFoundError):
    read_rows(tmp_path / "b.txt")


def test_mask_extents_are_opencvs_for_every_colour():
  rng = np.random.default_rng(0)
  palette = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [64, 0, 128]], np.uint8)
  labels = rng.choice(4, size=(9, 14), p=[0.9, 0.04, 0.04, 0.02])
  extents = mask_extents(palette[labels])
  colours = [128, 128 << 8, (128 << 16) + 64]
  assert list(extents) == colours
  for label, colour in enumerate(colours, start=1):
    assert extents[colour] == cv2.boundingRect((labels == label).astype(np.uint8))


def test_mask_extents_reach_every_edge_and_leave_black_out():
  image = np.zeros((5, 7, 3), np.uint8)
  assert mask_extents(image) == {}
  image[0, 0] = image[4, 6] = 255
  assert list(mask_extents(image).values()) == [(0, 0, 7, 5)]
  image[:] = 255
  assert list(mask_extents(image).values()) == [(0, 0, 7, 5)]
