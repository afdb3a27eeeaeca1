"""Tables 3, 4 and 5 of the paper, as they are printed."""

from ostrack_jax.evaluation import published, published_ablations


def test_table_3_gives_what_elimination_saves():
  models = published_ablations.elimination_models()
  assert [(one.search_size, one.eliminates, one.giga_macs) for one in models] == [
    (256, False, 29.0),
    (256, True, 21.5),
    (384, False, 65.3),
    (384, True, 48.3),
  ]
  # As the paper says in words: 25.9 % fewer MACs, 13.2 % and 40.3 % more speed.
  assert round(100 * (1 - models[1].giga_macs / models[0].giga_macs), 1) == 25.9
  assert round(100 * (models[1].fps / models[0].fps - 1), 1) == 13.2
  assert round(100 * (models[3].fps / models[2].fps - 1), 1) == 40.3


def test_models_with_elimination_are_those_of_table_1():
  for one in published_ablations.elimination_models():
    if one.eliminates:
      name = f"OSTrack-{one.search_size}"
      assert one.lasot_auc == published.scores("lasot")[name]["success_auc"]
      assert one.trackingnet_auc == published.scores("trackingnet")[name]["success_area"]
      assert one.got10k_ao == published.scores("got10k_test")[name]["ao"]


def test_table_4_ends_with_the_start_that_the_paper_takes():
  kinds = published_ablations.pretraining_kinds()
  assert list(kinds) == ["none", "ImageNet-1k", "ImageNet-21k", "MAE"]
  assert (kinds["none"]["lasot_auc"], kinds["ImageNet-1k"]["got10k_sr_0.5"]) == (60.4, 79.0)
  # The same models as OSTrack's of Table 5, but for GOT-10k, where those trained on it alone.
  stands_in_both = published_ablations.relations()["one_stream"]
  assert kinds["MAE"]["trackingnet_precision"] == stands_in_both["trackingnet_precision"] == 81.6
  assert (kinds["MAE"]["got10k_ao"], stands_in_both["got10k_ao"]) == (73.6, 71.0)


def test_table_5_gives_speeds_and_pairs():
  relations = published_ablations.relations()
  fps = {name: one["fps"] for name, one in relations.items()}
  # As the paper says in words.
  assert round(fps["one_stream"] - fps["stark"], 1) == 40.2
  assert round(fps["one_stream"] - fps["swintrack"], 1) == 25.6
  assert {name: one["million_pairs"] for name, one in relations.items()} == {
    "stark": 30,
    "swintrack": 39.3,
    "one_stream": 18,
  }
