"""Part `fidelity` of gpu.py: how far bfloat16 is from float32 on the card, here and in transformers, with the same weights."""

import os
import pathlib
import tempfile

import gpu

ROWS, TOKENS, STEPS = 4, 512, 64  # the last STEPS tokens also one by one, through the cache
PRESET = os.environ.get('GPU_FIDELITY_PRESET', 'small')


def fidelity() -> None:
  """Root mean square of the difference of log-probabilities (of codes: Talker, text: Thinker) to float32, over that of
  transformers in bfloat16. The weights are bfloat16 values in all three, so only arithmetic differs."""
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  import numpy as np
  from qwen3_omni_jax.tools.tiny import make_checkpoint

  from qwen3_omni_jax.infer.omni import Omni

  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) / PRESET
    make_checkpoint(folder, preset=PRESET)
    omni = Omni.load(folder)
    rng = np.random.default_rng(0)
    # Ordinary tokens only: media tokens would be replaced.
    ids = rng.integers(0, 256, (ROWS, TOKENS)).astype(np.int32)
    embeds = rng.standard_normal((ROWS, TOKENS, omni.cfg.talker.text.hidden_size)).astype(np.float32)
    exact, theirs = _theirs(folder, ids, embeds, 'float32'), _theirs(folder, ids, embeds, 'bfloat16')
    for part, values in _ours(omni, ids, embeds).items():
      kind = part.split()[0]
      want = exact[kind][:, -values.shape[1] :]
      error = lambda x, want=want: float(np.sqrt(np.mean((x[:, -want.shape[1] :] - want) ** 2)))
      ours, reference = error(values), error(theirs[kind])
      facts = {'preset': PRESET, 'positions': int(np.prod(values.shape[:2]))}
      gpu.report(
        what='bfloat16', part=part, **facts, ours=round(ours, 5), theirs=round(reference, 5), ratio=round(ours / reference, 3)
      )


def _log_softmax(x):
  import numpy as np

  x = np.asarray(x, np.float64)
  top = x.max(axis=-1, keepdims=True)
  return x - top - np.log(np.exp(x - top).sum(axis=-1, keepdims=True))


def _theirs(folder, ids, embeds, dtype: str) -> dict:
  import torch
  import transformers

  from tests.reference import prepare_torchvision

  prepare_torchvision()
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  options = {'dtype': getattr(torch, dtype), 'experts_implementation': 'eager'}
  model = transformers.Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, **options).to(device).eval()
  positions = torch.arange(ids.shape[1], device=device)[None, None].expand(3, *ids.shape)
  with torch.no_grad():
    thinker = model.thinker.model.language_model if hasattr(model.thinker.model, 'language_model') else model.thinker.model
    hidden = thinker(input_ids=torch.as_tensor(ids, device=device).long(), position_ids=positions, use_cache=False)[0]
    text = model.thinker.lm_head(hidden).float().cpu().numpy()
    x = torch.as_tensor(embeds, device=device).to(options['dtype'])
    hidden = model.talker.model(inputs_embeds=x, position_ids=positions, use_cache=False)[0]
    codes = model.talker.codec_head(hidden).float().cpu().numpy()
  return {'text': _log_softmax(text), 'codes': _log_softmax(codes)}


def _ours(omni, ids, embeds) -> dict:
  import jax
  import jax.numpy as jnp
  import numpy as np

  from qwen3_omni_jax.models.talker import code_logits, talker_forward
  from qwen3_omni_jax.models.thinker import Features, ThinkerTokens, logits, thinker_extend, thinker_forward, thinker_prefill
  from qwen3_omni_jax.nn.cache import init_cache

  cfg, params, dtype = omni.cfg, omni.params, jnp.bfloat16
  positions = np.broadcast_to(np.arange(TOKENS, dtype=np.float32), (3, ROWS, TOKENS))
  tokens = ThinkerTokens(jnp.asarray(ids), jnp.asarray(positions), jnp.ones_like(ids))

  @jax.jit
  def whole(params, tokens):
    out, _ = thinker_forward(params, cfg.thinker, tokens, Features(), dtype=dtype)
    return logits(params, out.hidden)

  @jax.jit
  def stepwise(params, tokens):
    cut = TOKENS - STEPS
    part = lambda a, b: ThinkerTokens(tokens.ids[:, a:b], tokens.positions[:, :, a:b], tokens.segment[:, a:b])
    cache = init_cache(cfg.thinker.text, ROWS, TOKENS, dtype)
    _, cache = thinker_prefill(params, cfg.thinker, part(0, cut), Features(), cache, dtype=dtype)

    def step(cache, at):
      one = ThinkerTokens(
        jax.lax.dynamic_slice_in_dim(tokens.ids, at, 1, 1),
        jax.lax.dynamic_slice_in_dim(tokens.positions, at, 1, 2),
        jnp.ones((ROWS, 1), jnp.int32),
      )
      out, cache = thinker_extend(params, cfg.thinker, one, Features(), jnp.full(ROWS, at), cache, dtype=dtype)
      return cache, logits(params, out.hidden[:, 0])

    _, scores = jax.lax.scan(step, cache, jnp.arange(cut, TOKENS, dtype=jnp.int32))
    return jnp.moveaxis(scores, 0, 1)

  @jax.jit
  def talker(params, x):
    hidden, _ = talker_forward(params, cfg.talker, x, jnp.asarray(positions), jnp.ones_like(ids))
    return code_logits(params, hidden)

  return {
    'text whole': _log_softmax(whole(params['thinker'], tokens)),
    'text step by step': _log_softmax(stepwise(params['thinker'], tokens)),
    'codes whole': _log_softmax(talker(params['talker'], jnp.asarray(embeds, dtype))),
  }
