"""One GPU, released sizes, random weights: kernels of one layer, the whole model, transformers, training, bfloat16.

    python benchmarks/gpu.py [PART …] [--out benchmarks/results/gpu.json] [--limit SECONDS] [--xla-flags=FLAGS]

`omni` loads the weights once for the parts `thinker`, `encoders`, `speech` and `batch`. Every other part runs in a process of its
own. What was measured is written as soon as it is known; what fails says why.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback

os.environ.setdefault('JAX_PLATFORMS', 'cuda,cpu')
os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.94')
sys.path.insert(0, str(pathlib.Path(__file__).parent))

from common import ROOT, circumstances  # noqa: E402

PARTS = ('layers', 'omni', 'reference', 'train', 'fidelity')
WHOLE = ('thinker', 'encoders', 'speech', 'batch')  # what `omni` runs one after another
MODEL = ROOT / 'configs' / 'model' / 'instruct.json'
PROMPT, NEW_TOKENS = 2048, 64


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join((*PARTS, *WHOLE))}; default: {", ".join(PARTS)}')
  parser.add_argument('--out', type=pathlib.Path, default=ROOT / 'benchmarks' / 'results' / 'gpu.json')
  parser.add_argument('--alone', action='store_true', help='run the part in this process and print its result')
  parser.add_argument('--limit', type=int, default=280, help='seconds for a part')
  parser.add_argument('--xla-flags', default='', help='added to XLA_FLAGS of every part')
  args = parser.parse_args()
  if args.alone:
    globals()[args.parts[0]]()
    return
  result: dict = {'date': time.strftime('%Y-%m-%d'), **circumstances(), 'xla_flags': args.xla_flags, 'parts': {}}
  flags = {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {args.xla_flags}'.strip()}
  for part in args.parts or PARTS:
    rows = result['parts'][part] = []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    command = ['timeout', str(args.limit), sys.executable, __file__, part, '--alone']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | flags) as process:
      assert process.stdout is not None
      for line in process.stdout:
        if line.startswith('{'):
          rows.append(json.loads(line))
          args.out.write_text(json.dumps(result, indent=1) + '\n')
    if process.returncode:
      rows.append({'stopped': f'exit code {process.returncode} (124: after {args.limit} s)'})
      args.out.write_text(json.dumps(result, indent=1) + '\n')


def report(**row) -> None:
  print(json.dumps(row), flush=True)
  print(row, file=sys.stderr, flush=True)


def tried(what: str, measure, **facts) -> None:
  try:
    report(what=what, **facts, **measure())
  except Exception as e:  # the next measurement goes on
    traceback.print_exc(limit=3)
    report(what=what, **facts, error=f'{type(e).__name__}: {str(e)[:160]}')


def median_ms(run, repeats: int = 7) -> float:
  """run() must return arrays; it is compiled and warm before the clock starts."""
  import jax
  import numpy as np

  for _ in range(2):
    jax.block_until_ready(run())
  times = []
  for _ in range(repeats):
    started = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - started)
  return round(1e3 * float(np.median(times)), 3)


def config(layers: int | None = None):
  from qwen3_omni_jax.config_json import parse_config

  data = json.loads(MODEL.read_text())
  if layers not in (None, data['thinker_config']['text_config']['num_hidden_layers']):
    data['thinker_config']['text_config']['num_hidden_layers'] = layers
    data['thinker_config']['vision_config']['deepstack_visual_indexes'] = [8]
    data['talker_config']['accept_hidden_layer'] = 1
  return parse_config(data)


def cheap_params(spec, dtype):
  """Values that look random, made in place: a random number generator would need several times an array's memory."""
  import jax
  import jax.numpy as jnp

  from qwen3_omni_jax.nn.params import is_param

  def fill(p):
    if p.init != 'normal':
      return p.create(jax.random.key(0), dtype)

    @jax.jit
    def make():
      mixed = jnp.zeros(p.shape, jnp.uint32)
      for axis, factor in zip(range(len(p.shape)), (2654435761, 2246822519, 3266489917, 668265263, 374761393), strict=False):
        count = jax.lax.broadcasted_iota(jnp.uint32, p.shape, axis)
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(2654435769) + count * jnp.uint32(factor)
      mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(2246822519)
      return (((mixed >> 8).astype(jnp.float32) / 2**23 - 1) * (3 / p.fan_in) ** 0.5).astype(dtype)

    return make()

  return jax.tree.map(fill, spec, is_leaf=is_param)


def layers() -> None:
  """Matmul rate and bandwidth of the card; one MoE layer and one attention layer of the Thinker, every kernel, both ways."""
  import jax
  import jax.numpy as jnp

  from qwen3_omni_jax.nn.attention import attention
  from qwen3_omni_jax.nn.expert_weights import Experts
  from qwen3_omni_jax.nn.moe import moe, moe_spec

  report(what='machine', gpu=jax.devices()[0].device_kind, **circumstances())
  a = jnp.ones((8192, 8192), jnp.bfloat16)
  product = jax.jit(lambda a: a @ a)
  ms = median_ms(lambda: product(a))
  report(what='matmul 8192', ms=ms, tflops=round(2 * 8192**3 / ms / 1e9))
  big = jnp.ones((2**31,), jnp.bfloat16)
  add = jax.jit(lambda x: x + 1)
  ms = median_ms(functools.partial(add, big))
  report(what='copy 4 GiB', ms=ms, gb_per_s=round(2 * big.nbytes / ms / 1e6))

  text = config().thinker.text
  D, F, E, A = text.hidden_size, text.moe_intermediate_size, text.num_experts, text.num_experts_per_tok
  params = cheap_params(moe_spec(D, F, E), jnp.bfloat16)
  for tokens in (1, 8, 64, 2048, 8192):
    x = jax.random.normal(jax.random.key(1), (1, tokens, D), jnp.bfloat16)
    forms = ['gathered', 'dense'] * (tokens <= 64) + ['ragged'] * (tokens <= 2048) + ['triton']
    for form in forms:
      run = jax.jit(lambda x, p, form=form: moe(x, p, Experts.of_layer(p['experts']), A, True, form=form)[0])
      flops = 6 * tokens * A * D * F

      def forward(run=run, x=x, flops=flops):
        ms = median_ms(lambda: run(x, params))
        return {'ms': ms, 'tflops': round(flops / ms / 1e9, 1)}

      tried('moe forward', forward, tokens=tokens, form=form)
      if tokens >= 2048:
        both = jax.jit(jax.grad(lambda x, p, run=run: run(x, p).astype(jnp.float32).sum(), (0, 1)))

        def backward(both=both, x=x, flops=flops):
          ms = median_ms(lambda: both(x, params))
          return {'ms': ms, 'tflops': round(3 * flops / ms / 1e9, 1)}

        tried('moe forward and backward', backward, tokens=tokens, form=form)

  N, K, H = text.num_attention_heads, text.num_key_value_heads, text.head_dim
  for tokens, documents in ((2048, 1), (8192, 1), (8192, 8), (32768, 1)):
    q = jax.random.normal(jax.random.key(2), (1, tokens, N, H), jnp.bfloat16)
    k = v = jax.random.normal(jax.random.key(3), (1, tokens, K, H), jnp.bfloat16)
    segment = 1 + jnp.arange(tokens, dtype=jnp.int32)[None] * documents // tokens
    plain = ['dense'] * (tokens == 2048) + ['blockwise'] * (tokens <= 8192 and documents == 1)
    for backend in (*plain, 'cudnn'):
      run = jax.jit(functools.partial(attention, q_segment=segment, k_segment=segment, causal=True, backend=backend))
      both = jax.jit(jax.grad(lambda q, k, v, run=run: run(q, k, v).astype(jnp.float32).sum(), (0, 1, 2)))
      flops = 2 * tokens * tokens * N * H // documents  # the half that causality leaves
      rate = lambda ms, n, flops=flops: {'ms': ms, 'tflops': round(n * flops / ms / 1e9, 1)}
      facts = dict(tokens=tokens, documents=documents, kernel=backend)
      tried('attention forward', lambda: rate(median_ms(lambda: run(q, k, v)), 1), **facts)
      tried('attention forward and backward', lambda: rate(median_ms(lambda: both(q, k, v)), 3.5), **facts)


def reference() -> None:
  """The same of transformers' Thinker."""
  import torch
  import transformers
  from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as configs
  from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as models

  data = json.loads(MODEL.read_text())['thinker_config']
  cfg = configs.Qwen3OmniMoeThinkerConfig(**data)
  report(what='reference', transformers=transformers.__version__, torch=torch.__version__, gpu=torch.cuda.get_device_name())
  torch.set_grad_enabled(False)
  with torch.device('meta'):
    model = models.Qwen3OmniMoeThinkerTextModel._from_config(cfg.text_config, dtype=torch.bfloat16)
    head = torch.nn.Linear(cfg.text_config.hidden_size, cfg.text_config.vocab_size, bias=False, dtype=torch.bfloat16)
  model, head = model.to_empty(device='cuda').eval(), head.to_empty(device='cuda')
  for p in (*model.parameters(), *head.parameters()):
    p.normal_(0, 0.02) if p.ndim > 1 else p.fill_(1)
  rotary = models.Qwen3OmniMoeThinkerTextRotaryEmbedding(cfg.text_config, device='cuda')
  model.rotary_emb = rotary

  def median(run, repeats=5):
    times = []
    for _ in range(repeats + 1):
      torch.cuda.synchronize()
      started = time.perf_counter()
      run()
      torch.cuda.synchronize()
      times.append(time.perf_counter() - started)
    return sorted(times[1:])[repeats // 2]

  def prefill():
    ids = torch.randint(0, 150000, (1, PROMPT), device='cuda')
    return {'ms': round(1e3 * median(lambda: head(model(input_ids=ids, use_cache=True).last_hidden_state[:, -1:]).argmax(-1)), 2)}

  tried('prefill', prefill, tokens=PROMPT)

  def step(B: int, context: int):
    ids = torch.randint(0, 150000, (B, min(context, 128)), device='cuda')
    cache = model(input_ids=ids, use_cache=True).past_key_values
    for layer in cache.layers:  # as if the context had been read
      layer.keys = layer.keys.repeat(1, 1, context // ids.shape[1], 1)
      layer.values = layer.values.repeat(1, 1, context // ids.shape[1], 1)
    token, at = ids[:, :1], context

    def one():
      nonlocal token, at
      position = torch.full((3, B, 1), at, device='cuda')
      out = model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True)
      token, at = head(out.last_hidden_state).argmax(-1), at + 1

    seconds = median(one, 21)
    return {'ms_per_step': round(1e3 * seconds, 2), 'tokens_per_s': round(B / seconds, 1)}

  for B, context in ((1, 2048), (8, 2048), (64, 1024)):
    tried('decode', lambda B=B, context=context: step(B, context), batch=B, context=context)


def omni() -> None:
  for part in WHOLE:
    globals()[part]()


def thinker() -> None:
  import gpu_thinker

  gpu_thinker.thinker()


def encoders() -> None:
  import gpu_thinker

  gpu_thinker.encoders()


def speech() -> None:
  import gpu_speech

  gpu_speech.speech()


def batch() -> None:
  import gpu_batch

  gpu_batch.batch()


def train() -> None:
  import gpu_train

  gpu_train.train()


def fidelity() -> None:
  import gpu_fidelity

  gpu_fidelity.fidelity()


if __name__ == '__main__':
  main()
