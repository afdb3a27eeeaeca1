"""Table 3: what candidate elimination saves, and how accuracy and speed follow the keep ratio at test time."""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import speed_rows
from benchmarks.gathered_runs import UNRUN
from ostrack_jax import loading, visualization
from ostrack_jax.evaluation import measures, metrics, published_ablations, run_folder
from ostrack_jax.models.ostrack import OSTrack
from ostrack_jax.training import cost, run_summary
from ostrack_jax.training.state import init_variables

# Official models hold tensors that the network does not use: a class token, and the position table of MAE.
UNUSED_TENSORS = {"class token": 768, "position table of 197": 197 * 768}


def count(model: OSTrack) -> dict[str, float]:
  """Return {"parameters", "giga_macs" by the paper's counting, "true_giga_macs"} of a model.

  The paper's profiler leaves out the products inside attention, QK^T and PV, and the rows of it that rank candidates.
  """
  shapes = jax.eval_shape(lambda: init_variables(model, 0)["params"])
  macs = cost.forward_macs(model)
  left_out = macs["attention products"] + macs["candidate ranking"]
  return {
    "parameters": sum(run_summary.count_parameters(shapes).values()),
    "giga_macs": (sum(macs.values()) - left_out) / 1e9,
    "true_giga_macs": sum(macs.values()) / 1e9,
  }


def table(
  content: Mapping[str, Any], variant: str, search_sizes: Sequence[int]
) -> tuple[str, list[dict]]:
  """Return Table 3 as Markdown and as rows; content: what is gathered, for the speeds."""
  printed = {
    (one.search_size, one.eliminates): one for one in published_ablations.elimination_models()
  }
  names = [
    *("search", "elimination", "parameters", "MACs (G)", "paper: MACs", "true MACs (G)"),
    *("FPS", "FPS from frame to box", "paper: FPS"),
    *("paper: LaSOT AUC", "paper: TrackingNet AUC", "paper: GOT-10k AO"),
  ]
  lines = ["## Table 3: candidate elimination", "", "| " + " | ".join(names) + " |"]
  lines.append("|---" * len(names) + "|")
  rows, measured = [], {}
  for size in search_sizes:
    for eliminates in (False, True):
      key = speed_rows.key(variant, size, eliminates)
      fps = content.get("fps", {}).get(key)
      if fps is not None:
        measured[key] = fps
      paper = printed.get((size, eliminates)) if variant == "b" else None
      row = {"search": size, "eliminates": eliminates, "fps": fps}
      row |= count(speed_rows.make_model(variant, size, eliminates))
      rows.append(row)
      cells = [
        str(size),
        "with" if eliminates else "without",
        f"{row['parameters']:,}",
        f"{row['giga_macs']:.1f}",
        _or_dash(paper, "giga_macs"),
        f"{row['true_giga_macs']:.1f}",
        speed_rows.text(fps),
        speed_rows.text(fps, "step"),
        *(_or_dash(paper, name) for name in ("fps", "lasot_auc", "trackingnet_auc", "got10k_ao")),
      ]
      lines.append("| " + " | ".join(cells) + " |")
  lines += ["", *_remarks(rows, printed if variant == "b" else {}, measured)]
  return "\n".join(lines) + "\n", rows


def _or_dash(paper: published_ablations.Elimination | None, name: str) -> str:
  return "-" if paper is None else f"{getattr(paper, name):.1f}"


def _remarks(rows, printed, measured) -> list[str]:
  lines = [
    "* MACs as the paper's profiler counts them, without the products inside attention; true MACs have them, and the "
    f"rows that rank candidates. Paper: {published_ablations.SOURCE}, Table 3, speeds on an {published_ablations.DEVICE}.",
    "* Parameters are those that the network uses. Official files hold "
    + " and ".join(f"{number:,} in a {name}" for name, number in UNUSED_TENSORS.items())
    + " besides.",
    f"* Our scores on LaSOT, TrackingNet and GOT-10k: {UNRUN}; Tables 1 and 2 take an evaluated run's.",
  ]
  if measured:
    lines.append(
      f"* FPS at batch 1 on {speed_rows.devices(measured)}: the network from crops on the device to a box on the host, "
      "and a whole step from a frame of 1280 x 720."
    )
  else:
    lines.append(f"* FPS: {UNRUN} (`--table=3 --measure`).")
  for whole, less in zip(rows[::2], rows[1::2], strict=True):
    paper = [printed.get((one["search"], one["eliminates"])) for one in (whole, less)]
    speed = speed_rows.ratio(less["fps"], whole["fps"])
    saved = 100 * (less["giga_macs"] / whole["giga_macs"] - 1)
    true = 100 * (less["true_giga_macs"] / whole["true_giga_macs"] - 1)
    line = f"* {whole['search']}: elimination changes MACs by {saved:+.1f} % ({true:+.1f} % of the true ones)"
    if speed is not None:
      line += f", FPS by {100 * (speed - 1):+.1f} %"
    if all(paper):
      fps, macs = (
        100 * (getattr(paper[1], name) / getattr(paper[0], name) - 1)
        for name in ("fps", "giga_macs")
      )
      line += f"; in the paper {macs:+.1f} % and {fps:+.1f} %"
      # The reason is one of GPUs; a speed that does not say where it was measured gets none.
      on_gpu = speed is not None and less["fps"].get("platform") == "gpu"
      if on_gpu and 100 * (speed - 1) < fps:
        line += (
          ". Less than there, probably since a newer device spends less of a batch of 1 on arithmetic: reading the "
          "weights and starting kernels take as long with fewer candidates"
        )
    lines.append(line + ".")
  return lines


def curve_name(checkpoint: str, dataset: str) -> str:
  """Return under which name a curve is kept: the checkpoint's, with a digest that no other one has.

  Raises as loading.load does.
  """
  loaded = loading.load(checkpoint)
  digest = run_folder.checkpoint_digest(loaded.variables, loaded.description)
  return f"{loading.label(checkpoint)} {digest[:8]} {dataset}"


def evaluation_commands(
  name: str,
  checkpoint: str,
  dataset: str,
  root: str,
  keep_ratios: Sequence[float],
  runs: pathlib.Path,
) -> dict[float, tuple[list[str], pathlib.Path]]:
  """Return for every keep ratio the command that evaluates with it, and the folder that it writes.

  name: of the curve; its folders lie together in one of `runs`.
  """
  commands = {}
  for ratio in keep_ratios:
    # Written in full, since two ratios must not share a folder.
    folder = runs / name.replace(" ", "_") / str(ratio)
    commands[ratio] = (
      [
        *(sys.executable, "-m", "ostrack_jax.evaluate", f"--checkpoint={checkpoint}"),
        *(f"--dataset={dataset}", f"--root={root}", "--allow_missing"),
        *(f"--keep_ratios={ratio}", f"--output={folder}"),
      ],
      folder,
    )
  return commands


def curve(checkpoint: str, folders: Mapping[float, pathlib.Path], seconds: float) -> dict[str, Any]:
  """Return a curve over keep ratios: scores of evaluated folders by ratio, and the speeds, measured now.

  Raises:
    FileNotFoundError: a folder was not evaluated.
  """
  models = {ratio: loading.load(checkpoint, keep_ratios=ratio) for ratio in folders}
  variables = next(iter(models.values())).variables
  fps = speed_rows.measure(
    {str(ratio): one.model for ratio, one in models.items()}, seconds, variables
  )
  points, about = [], {}
  for ratio, folder in folders.items():
    summary = json.loads((folder / "summary.json").read_text())
    rule = summary["rule"]
    first = measures.measures_of(rule)[0]
    scores = summary["all_frames" if metrics.RULES[rule].pooled else "mean"]
    about = {
      "rule": rule,
      "measure": first.key,
      "sequences": summary["sequences"],
      "names": list(summary["per_sequence"]),
    }
    points.append(
      {
        "keep_ratio": ratio,
        "score": round(scores[first.key], 4),
        "kept": models[ratio].model.stage_counts(),
        "giga_macs": count(models[ratio].model)["true_giga_macs"],
        **fps[str(ratio)],
      }
    )
  trained = next(iter(models.values())).description["model"]["keep_ratios"]
  return {"trained_keep_ratios": trained, **about, "points": points}


def curve_table(name: str, found: Mapping[str, Any]) -> str:
  """Return a curve as Markdown."""
  points = found["points"]
  lines = [
    f"### Keep ratio at test time: {name}",
    "",
    f"| keep ratio | candidates left | true MACs (G) | FPS | FPS from frame to box | {found['measure']} |",
    "|---|---|---|---|---|---|",
  ]
  for point in points:
    kept = ", ".join(map(str, point["kept"])) or "all"
    lines.append(
      f"| {point['keep_ratio']:g} | {kept} | {point['giga_macs']:.3f} | {point['network']:.1f} "
      f"| {point['step']:.1f} | {point['score']:.4f} |"
    )
  trained = ", ".join(f"{ratio:g}" for ratio in found["trained_keep_ratios"]) or "none"
  speeds = {str(point["keep_ratio"]): point for point in points}
  lines += [
    "",
    f"Trained with keep ratios {trained}, nothing retrained; rule `{found['rule']}`, {found['sequences']} sequences; "
    f"FPS at batch 1 on {speed_rows.devices(speeds)}.",
  ]
  return "\n".join(lines) + "\n"


def draw_curve(name: str, found: Mapping[str, Any], path: pathlib.Path) -> None:
  """Draw speed and accuracy over the keep ratio."""
  # Loaded late: tables need no pictures.
  import matplotlib.figure

  figure = matplotlib.figure.Figure(figsize=(7, 4.2), layout="constrained")
  accuracy = figure.subplots()
  speed = accuracy.twinx()
  points = sorted(found["points"], key=lambda point: point["keep_ratio"])
  ratios = [point["keep_ratio"] for point in points]
  for axes, key, colour, label in (
    (accuracy, "score", "tab:blue", f"{found['measure']} ({found['sequences']} sequences)"),
    (speed, "network", "tab:orange", "frames per second, network at batch 1"),
  ):
    values = np.array([point[key] for point in points])
    axes.plot(ratios, values, marker="o", color=colour)
    axes.set_ylabel(label, color=colour)
    axes.set_ylim(0, 1.1 * values.max())
  accuracy.set(
    title=f"{name}: elimination at test time", xlabel="keep ratio of every stage at test time"
  )
  accuracy.grid(alpha=0.3)
  trained = found["trained_keep_ratios"]
  if len(set(trained)) == 1:
    accuracy.axvline(trained[0], color="grey", linestyle=":")
    accuracy.text(trained[0], 0.02, " trained with", color="grey", fontsize=8)
  path.parent.mkdir(parents=True, exist_ok=True)
  with visualization.written_whole(path) as temporary:
    figure.savefig(temporary, dpi=110)
