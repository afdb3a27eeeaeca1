"""The peer of benchmarks.inference: an equal network in PyTorch.

On CUDA in float16, compiled with CUDA graphs, which was the fastest form that was tried; on a CPU in
float32, eagerly. Elimination has static shapes, as in ours, without which it could not be captured. Weights are random: only the time counts. Needs torch,
which the package does not. Runs in a process of its own, see peer_process.
"""

import torch
import torch.nn.functional as F
from torch import nn

_WIDTH, _DEPTH, _HEADS, _PATCH, _CHANNELS = 768, 12, 12, 16, 256


class Block(nn.Module):
  """A pre-norm transformer block that can also return the attention of one token."""

  def __init__(self):
    super().__init__()
    self.norm1 = nn.LayerNorm(_WIDTH, eps=1e-6)
    self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
    self.proj = nn.Linear(_WIDTH, _WIDTH)
    self.norm2 = nn.LayerNorm(_WIDTH, eps=1e-6)
    self.mlp = nn.Sequential(
      nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH)
    )

  def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
    """Return x with the MLP added."""
    return x + self.mlp(self.norm2(x))

  def attend(self, x: torch.Tensor, token: int | None):
    """Return x with attention added, and the token's attention averaged over heads, or None."""
    batch, count, _ = x.shape
    qkv = self.qkv(self.norm1(x)).reshape(batch, count, 3, _HEADS, _WIDTH // _HEADS)
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(queries, keys, values)
    looks = None
    if token is not None:
      logits = queries[:, :, token : token + 1] @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
      looks = logits.softmax(-1).mean(1)[:, 0]
    return x + self.proj(mixed.transpose(1, 2).reshape(batch, count, _WIDTH)), looks


class Branch(nn.Sequential):
  """Four convolutions with batch normalisation, and a 1 x 1 convolution."""

  def __init__(self, outputs: int):
    layers, width = [], _WIDTH
    for layer in range(4):
      channels = _CHANNELS // 2**layer
      layers += [nn.Conv2d(width, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
      width = channels
    super().__init__(*layers, nn.Conv2d(width, outputs, 1))


class Peer(nn.Module):
  """OSTrack ViT-B: template and search region in, box in the unit square of the crop out."""

  def __init__(self, search_size: int, keep_ratio: float):
    super().__init__()
    self.grid = search_size // _PATCH
    template = (self.grid // 2) ** 2
    self.template_token = ((self.grid // 2 - 1) // 2) * (self.grid // 2 + 1)
    self.keep_ratio = keep_ratio
    self.patches = nn.Conv2d(3, _WIDTH, _PATCH, _PATCH)
    self.position_z = nn.Parameter(torch.randn(1, template, _WIDTH) * 0.02)
    self.position_x = nn.Parameter(torch.randn(1, self.grid**2, _WIDTH) * 0.02)
    self._blocks = [Block() for _ in range(_DEPTH)]
    self.blocks = nn.ModuleList(self._blocks)
    self.norm = nn.LayerNorm(_WIDTH, eps=1e-6)
    self.score, self.size, self.offset = Branch(1), Branch(2), Branch(2)
    ramp = torch.hann_window(self.grid + 2, periodic=False)[1:-1]
    self.register_buffer("window", ramp[:, None] * ramp[None, :])

  def forward(self, template: torch.Tensor, search: torch.Tensor) -> torch.Tensor:
    """Return [b, 4] cxcywh of normalised images [b, 3, side, side]."""
    z = self.patches(template).flatten(2).transpose(1, 2) + self.position_z
    x = self.patches(search).flatten(2).transpose(1, 2) + self.position_x
    count, total = z.shape[1], x.shape[1]
    tokens = torch.cat([z, x], 1)
    cells = torch.arange(total, device=x.device)[None, :].expand(len(x), -1)
    for layer, block in enumerate(self._blocks):
      eliminates = layer in (3, 6, 9) and self.keep_ratio < 1
      tokens, looks = block.attend(tokens, self.template_token if eliminates else None)
      if looks is not None:
        kept = -int(-self.keep_ratio * cells.shape[1] // 1)
        order = looks[:, count:].topk(kept, 1).indices
        cells = cells.gather(1, order)
        alive = tokens[:, count:].gather(1, order[..., None].expand(-1, -1, _WIDTH))
        tokens = torch.cat([tokens[:, :count], alive], 1)
      tokens = block.feed_forward(tokens)
    alive = self.norm(tokens)[:, count:]
    grid = torch.zeros(len(x), total, _WIDTH, device=x.device, dtype=alive.dtype)
    grid = grid.scatter(1, cells[..., None].expand(-1, -1, _WIDTH), alive)
    features = grid.transpose(1, 2).reshape(len(x), _WIDTH, self.grid, self.grid)
    score = self.score(features).sigmoid().clamp(1e-4, 1 - 1e-4)
    size = self.size(features).sigmoid().clamp(1e-4, 1 - 1e-4).flatten(2)
    offset = self.offset(features).flatten(2)
    peak = (score[:, 0] * self.window).flatten(1).argmax(1)
    where = peak[:, None, None].expand(-1, 2, 1)
    cell = torch.stack([peak % self.grid, peak // self.grid], 1)
    centre = (cell + offset.gather(2, where)[..., 0]) / self.grid
    return torch.cat([centre, size.gather(2, where)[..., 0]], 1)


def make_step(search_size: int, keep_ratio: float, batch_size: int):
  """Return a function that runs the network once on a batch on the device and waits for its boxes."""
  on_gpu = torch.cuda.is_available()
  device, dtype = ("cuda", torch.float16) if on_gpu else ("cpu", torch.float32)
  torch.manual_seed(0)
  network = Peer(search_size, keep_ratio).eval().to(device, dtype)
  template, search = (
    torch.randn(batch_size, 3, side, side, device=device, dtype=dtype)
    for side in (search_size // 2, search_size)
  )
  # Not for any batch size because another one was compiled before.
  forward = torch.compile(network, mode="reduce-overhead", dynamic=False) if on_gpu else network

  def step():
    with torch.inference_mode():
      return forward(template, search).cpu()

  return step
