"""One layer of the mixture of experts on CPU beside transformers' on torch, in one run: same weights, float32, two threads each.

    python benchmarks/moe_vs_torch.py [--size small,full] [--tokens 1,8,64,2048]

`small`: the preset's layer; `full`: the released Thinker's (0.6 G parameters: takes 13 GB of memory). Forward is the form that
decoding and prefill use, the experts lying in their stack; backward is that of training, of everything to the input and all
parameters. Medians of runs taken in turns. torch has three ways (`experts_implementation`): each is timed, and ours is set
against the fastest at that size.
"""

import argparse
import functools

import common
import numpy as np

WAYS = ('eager', 'grouped_mm', 'batched_mm')
# Width, hidden width, experts, chosen ones.
SIZES = {'small': (512, 192, 32, 4), 'full': (2048, 768, 128, 8)}
BATCHED_PAIRS = 64  # above, batched_mm would copy more than all the experts: it is for few tokens


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', default='small,full')
  parser.add_argument('--tokens', default='1,8,64,2048')
  parser.add_argument('--passes', default='forward,backward')
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--seconds', type=float, default=10.0, help='about how long each pair is timed')
  args = parser.parse_args()
  import torch

  from tests.reference import prepare_torchvision

  prepare_torchvision()
  torch.set_num_threads(2)
  result = common.circumstances() | {'torch': torch.__version__, 'dtype': args.dtype, 'rows': {}}
  for size in args.size.split(','):
    layer = Layer(size, args.dtype)
    for tokens in map(int, args.tokens.split(',')):
      for direction in args.passes.split(','):
        name = f'{size}, {tokens} tokens, {direction}'
        row = result['rows'][name] = layer.compare(tokens, direction, args.seconds)
        sides = f'ours {row["ours_ms"]:9.3f} ms   torch {row["torch_ms"]:9.3f} ms ({row["way"]})'
        print(f'{name:36s} {sides}   {row["ratio"]:5.2f} of it', flush=True)
        common.save('moe_vs_torch', result)


class Layer:
  """The same random layer on both sides."""

  def __init__(self, size: str, dtype: str):
    import jax.numpy as jnp
    import torch
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeTextConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeThinkerTextSparseMoeBlock

    D, F, E, self.active = SIZES[size]
    cfg = Qwen3OmniMoeTextConfig(
      hidden_size=D, moe_intermediate_size=F, num_experts=E, num_experts_per_tok=self.active, norm_topk_prob=True
    )
    self.block = Qwen3OmniMoeThinkerTextSparseMoeBlock(cfg)
    torch.manual_seed(0)
    with torch.no_grad():
      for p in self.block.parameters():
        p.normal_(0, p.shape[-1] ** -0.5)
    self.block.to(getattr(torch, dtype))
    self.dtype, self.width = jnp.dtype(dtype), D
    turned = lambda p: jnp.asarray(p.detach().float().numpy().swapaxes(-1, -2), self.dtype)
    gate_up = self.block.experts.gate_up_proj
    self.params = {
      'router': turned(self.block.gate.weight),
      'experts': {'gate': turned(gate_up[:, :F]), 'up': turned(gate_up[:, F:]), 'down': turned(self.block.experts.down_proj)},
    }

  def compare(self, tokens: int, direction: str, seconds: float) -> dict:
    """Medians of ours and of torch's ways, after a check that they compute the same."""
    x = np.random.default_rng(tokens).standard_normal((1, tokens, self.width), dtype=np.float32)
    ours = self.ours(x, direction)
    ways = [way for way in WAYS if way != 'batched_mm' or tokens * self.active <= BATCHED_PAIRS]
    times = {}
    for way in ways:
      theirs = self.theirs(x, direction, way)
      for a, b in zip(ours(), theirs(), strict=True):
        a, b = np.asarray(a, np.float32), b.detach().float().numpy()
        tolerance = 1e-4 if self.dtype == np.float32 else 3e-2
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), err_msg=way)
      once = max(common.side_by_side(ours, theirs, 1))
      times[way] = common.side_by_side(ours, theirs, int(np.clip(seconds / 2 / once, 3, 400)))
    way = min(times, key=lambda way: times[way][1])
    mine, its = times[way]
    return {
      'ours_ms': round(mine * 1e3, 3),
      'torch_ms': round(its * 1e3, 3),
      'way': way,
      'ratio': round(mine / its, 3),
      'torch_ways_ms': {way: round(t * 1e3, 3) for way, (_, t) in times.items()},
    }

  def ours(self, x: np.ndarray, direction: str):
    import jax
    import jax.numpy as jnp

    from qwen3_omni_jax.nn.expert_weights import Experts
    from qwen3_omni_jax.nn.moe import moe

    def forward(x, params, layer):
      return moe(x, params, Experts.in_stack(jax.tree.map(lambda w: w[None], params['experts']), layer), self.active, True)[0]

    def loss(x, params, dy):
      return (moe(x, params, Experts.of_layer(params['experts']), self.active, True)[0] * dy).astype(jnp.float32).sum()

    x = jnp.asarray(x, self.dtype)
    if direction == 'forward':
      run = functools.partial(jax.jit(forward), x, self.params, jnp.int32(0))
      return lambda: [run().block_until_ready()]
    run = functools.partial(jax.jit(jax.grad(loss, (0, 1))), x, self.params, jnp.flip(x))

    def both():
      dx, dp = jax.block_until_ready(run())
      return [dx, dp['router'].T]

    return both

  def theirs(self, x: np.ndarray, direction: str, way: str):
    import torch

    self.block.experts.config._experts_implementation = way
    x = torch.tensor(x, dtype=next(self.block.parameters()).dtype)
    dy = x.flip((0, 1, 2))
    if direction == 'forward':

      def forward():
        with torch.no_grad():
          return [self.block(x)]

      return forward

    def both():
      self.block.zero_grad(set_to_none=True)
      leaf = x.clone().requires_grad_()
      (self.block(leaf) * dy).float().sum().backward()
      return [leaf.grad, self.block.gate.weight.grad]

    return both


if __name__ == '__main__':
  main()
