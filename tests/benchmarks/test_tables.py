"""The command benchmarks.tables: mistakes end in one sentence."""

import pytest


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ((), "--table missing; give 1 to 5"),
    (("--table=5", "--run=random"), "--run=random is not of Table 5, which has stark, swintrack"),
    (("--table=4", "--run=mae"), "--run=mae starts from a file of ViT-B; give --mae=FILE"),
    (("--table=5", "--run=stark", "--seed=7"), "--seed=7 is not planned; choose one of"),
    (("--table=3", "--checkpoint=x"), "--checkpoint needs --root"),
    (("--table=4", "--measure"), "--measure is for --table 3 and 5, not 4"),
    (("--table=3", "--search_sizes=big"), "--search_sizes has 'big'; expected numbers"),
    (("--table=1", "--results=nowhere"), "nowhere holds no summary.json; evaluate first"),
    (("--table=4", "--merge=nowhere.json"), "--merge=nowhere.json: there is no such file"),
  ],
)
def test_mistakes_end_in_one_sentence(command, arguments, said):
  with pytest.raises(SystemExit, match=r"benchmarks\.tables: ") as raised:
    command(*arguments)
  assert said in str(raised.value)


def test_a_run_of_the_other_table_and_a_damaged_file_are_refused(command, summary, tmp_path):
  folder = summary("nfs", dataset="nfs", rule="pytracking")
  with pytest.raises(SystemExit, match="evaluated on nfs, which is in Table 2; use --table=2"):
    command("--table=1", f"--results={folder}")
  for text, said in (("{", "is not readable JSON"), ('{"x": {}}', "holds 'x', which no table has")):
    (tmp_path / "gathered.json").write_text(text)
    with pytest.raises(SystemExit, match=said):
      command("--table=4")
