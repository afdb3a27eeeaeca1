"""Tables 1 and 2: evaluated runs among the published ones."""

from benchmarks import published_rows


def test_a_run_is_set_among_the_published_rows(command, summary):
  lines = command("--table=1", f"--results={summary('whole')}").splitlines()
  names = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
  lasot = names[1 : names.index("", 1)]
  assert lasot[:5] == ["OSTrack-384", "SwinTrack-B", "OSTrack-256", "**mine (ours)**", "STARK"]
  row = next(line for line in lines if "mine" in line)
  assert row == (
    "| **mine (ours)** | **68.5** | **74.0** | **-** | rule `pytracking_lasot`; all 280 sequences |"
  )
  assert sum("not run yet" in line for line in lines) == 3


def test_what_makes_a_row_incomparable_is_told(summary):
  folder = summary(
    "part",
    rule="otb",
    sequences="1 of 280",
    teacher_forced=True,
    elimination_set_to="block 3 keeps 0.5",
  )
  text, _ = published_rows.table(1, [published_rows.read(folder)])
  (row,) = (line for line in text.splitlines() if "mine" in line)
  assert "rule `otb`, **not the benchmark's `pytracking_lasot`**" in row
  assert "**1 of 280 sequences**" in row and "every search around the annotated box" in row
  assert "elimination set at test time: block 3 keeps 0.5" in row


def test_got10k_rows_are_over_all_frames(summary):
  folder = summary(
    "got",
    dataset="got10k_test",
    rule="got10k",
    sequences="180 of 180",
    mean={"ao": 0.1},
    all_frames={"ao": 0.72, "sr_0.5": 0.8, "sr_0.75": 0.7},
  )
  ranked = published_rows.rows("got10k_test", [published_rows.read(folder)])
  assert [row["tracker"] for row in ranked][:3] == ["OSTrack-384", "mine", "OSTrack-256"]
