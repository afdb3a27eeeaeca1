"""How a network is loaded, as evaluate, track and visualize take them."""

import pytest

from ostrack_jax import command_line, evaluate, network_flags, track, visualize


@pytest.mark.parametrize(
  ("arguments", "ratios", "layers"),
  [
    ([], None, None),
    (["--keep_ratios=0.5"], (0.5,), None),
    (["--keep_ratios=0.9,0.5,1", "--elimination_layers=3,6,9"], (0.9, 0.5, 1.0), (3, 6, 9)),
    (["--elimination_layers="], None, ()),
  ],
)
def test_flags_become_arguments_of_load(arguments, ratios, layers):
  own = command_line.new_flags()
  network_flags.define(own)
  own(["command", *arguments])
  assert network_flags.read_elimination(own) == {
    "keep_ratios": ratios,
    "elimination_layers": layers,
  }


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("--keep_ratios=half", "--keep_ratios has 'half'; expected a number"),
    ("--elimination_layers=3,4.5", "--elimination_layers has '4.5'; expected a whole number"),
  ],
)
def test_words_that_are_no_numbers_are_named(argument, words):
  own = command_line.new_flags()
  network_flags.define(own)
  own(["command", argument])
  with pytest.raises(ValueError, match=words):
    network_flags.read_elimination(own)


def test_every_command_that_runs_a_network_has_the_flags():
  for command in (evaluate, track, visualize):
    assert {"dtype", "num_heads", "keep_ratios", "elimination_layers"} <= set(command.FLAGS)
