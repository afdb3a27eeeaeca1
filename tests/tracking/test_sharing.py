"""Sequences are shared out by length."""

import itertools

import numpy as np
import pytest

from ostrack_jax.tracking import sharing


def test_the_longest_comes_first_and_goes_where_it_is_free_next():
  assert sharing.share_out([3, 9, 4, 4, 2], 2) == [[1, 4], [2, 3, 0]]
  assert sharing.share_out([5, 5], 3) == [[0], [1], []]
  with pytest.raises(ValueError, match="over 0 parts"):
    sharing.share_out([1], 0)


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_shares_cover_all_and_none_waits_longer_than_one_sequence(parts):
  lengths = np.random.default_rng(0).integers(1, 3000, 100).tolist()
  shares = sharing.share_out(lengths, parts)
  assert sorted(itertools.chain(*shares)) == list(range(100))
  loads = [sum(lengths[number] for number in share) for share in shares]
  last = max(lengths[share[-1]] for share in shares)
  assert max(loads) - min(loads) <= last
  assert all(lengths[a] >= lengths[b] for share in shares for a, b in itertools.pairwise(share))
