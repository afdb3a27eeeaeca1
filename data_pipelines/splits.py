"""Which sequences the splits of LaSOT, GOT-10k and TrackingNet consist of.

A data set is stored once for each part that it is published in; a split is a subset of a part, by the
names of its sequences. The lists come with the package, each checked by its count and SHA-256.

GOT-10k in this field: the VOT challenge forbids 1000 sequences of the training part by name, and the
official model trains on `vottrain`, an index list that is meant to leave them out. It leaves out the
forbidden *numbers* n as positions counted from 0, which are the sequences numbered n + 1. With list.txt
in natural order 890 of the 1000 forbidden sequences stay in: 765 in `vottrain`, 125 in `votval`. Use
these two to repeat the official training, and `vottrain_by_name` and `votval_by_name` for a model that
VOT accepts.

| set | split | part | sequences |
|---|---|---|---|
| lasot | train, test | train, test | 1120, 280 |
| got10k | train_full | train | 9335 |
| got10k | vottrain, votval | train | 7086, 1249 |
| got10k | vottrain_by_name | train | 7211: all but the forbidden and votval_by_name |
| got10k | votval_by_name | train | 1124: votval without the forbidden |
| got10k | val | val | 180 |
| trackingnet | train | train | 30134: TRAIN_0 to TRAIN_11 |
"""

import functools
import hashlib
import importlib.resources

GOT10K_COUNTS = {"train": 9335, "val": 180}

# Lines and SHA-256 of every list.
_LISTS = {
  "got10k_train_full_indices": (
    9335,
    "eec4985dd3a46da68b458bca10bba7fa984d3d47b836f2333853adfdaf7580b9",
  ),
  "got10k_vottrain_indices": (
    7086,
    "0a9e60f5628a536e48721d13c4c5b2dd8de0fef710c4463e293e92236df6385f",
  ),
  "got10k_votval_indices": (
    1249,
    "531f110c38b82b1a0d2aa6eaab1777cb304c75e4c757e7527ef4dc0cd1e72546",
  ),
  "got10k_vot_forbidden_names": (
    1000,
    "237e5f0d99c2eba8ce842fe805cc087bfbdc269f7517ca5d9d9c907b54ecbf6c",
  ),
  "lasot_train_names": (
    1120,
    "0ae7df00644ee36794ac1d67f123612eb6341b4e94fef933169607d650ade893",
  ),
  "lasot_test_names": (280, "11709952a85f42307ffe7a8952378169d9bf026ec904099f040f0de40db5434e"),
  "trackingnet_train_names": (
    30134,
    "223d44a60b444f569d4b2d0b5559f94392a47a46d07fd523b6acedc9aaad029b",
  ),
}
# Set, split: the part that it is a subset of.
_PARTS = {
  "lasot": {"train": "train", "test": "test"},
  "got10k": {
    "train_full": "train",
    "vottrain": "train",
    "votval": "train",
    "vottrain_by_name": "train",
    "votval_by_name": "train",
    "val": "val",
  },
  "trackingnet": {"train": "train"},
}


def got10k_names(part: str) -> tuple[str, ...]:
  """Name the sequences of GOT-10k's "train" or "val" in natural order, that of list.txt."""
  return tuple(f"GOT-10k_{part.title()}_{i:06d}" for i in range(1, GOT10K_COUNTS[part] + 1))


def parts(dataset: str) -> tuple[str, ...]:
  """Name the splits that a data set's lists define."""
  return tuple(_PARTS[dataset])


def stored_part(dataset: str, split: str) -> str:
  """Return the part that holds a split's sequences, which is how the prepared data names it.

  Raises:
    ValueError: no such set or split; names those that there are.
  """
  if dataset not in _PARTS:
    raise ValueError(f"no split lists for data set {dataset!r}, only for {', '.join(_PARTS)}")
  if split not in _PARTS[dataset]:
    raise ValueError(
      f"data set {dataset} has no split {split!r}; choose from {', '.join(_PARTS[dataset])}"
    )
  return _PARTS[dataset][split]


@functools.cache
def subset(dataset: str, split: str) -> tuple[str, ...]:
  """Return the names of a split's sequences, in the order of its list.

  Args:
    dataset: "lasot", "got10k" or "trackingnet".
    split: see the table above.

  Raises:
    ValueError: no such set or split, or a list in the package is not the one that was shipped.
  """
  part = stored_part(dataset, split)
  if dataset != "got10k":
    return _lines(f"{dataset}_{split}_names")
  if split == "val":
    return got10k_names(part)
  if not split.endswith("_by_name"):
    names = got10k_names(part)
    return tuple(names[int(line)] for line in _lines(f"got10k_{split}_indices"))
  left_out = set(_lines("got10k_vot_forbidden_names"))
  if split == "vottrain_by_name":
    left_out |= set(subset("got10k", "votval_by_name"))
  whole = "train_full" if split == "vottrain_by_name" else "votval"
  return tuple(name for name in subset("got10k", whole) if name not in left_out)


def _lines(name: str) -> tuple[str, ...]:
  """Read one of the lists after checking that it is the one that was shipped."""
  count, digest = _LISTS[name]
  path = importlib.resources.files("data_pipelines") / "split_lists" / f"{name}.txt"
  # A checkout on Windows may have turned the line ends.
  data = path.read_bytes().replace(b"\r\n", b"\n")
  lines = tuple(data.decode().split())
  found = hashlib.sha256(data).hexdigest()
  if (len(lines), found) != (count, digest):
    raise ValueError(
      f"{path} was changed: {len(lines)} lines with SHA-256 {found[:12]}..., expected {count} with "
      f"{digest[:12]}...; install the package again"
    )
  return lines
