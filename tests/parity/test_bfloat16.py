"""bfloat16 is no worse than the reference's: our error against its float32 results, over its own bfloat16 error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_omni_jax.infer import decode
from qwen3_omni_jax.infer.collate import collate
from qwen3_omni_jax.models.code_predictor import code_predictor_forward
from qwen3_omni_jax.models.talker import code_logits, talker_forward
from qwen3_omni_jax.models.thinker import Features, ThinkerTokens, logits, thinker_forward
from tests.parity import report
from tests.parity.conftest import with_their_pixels
from tests.parity.test_networks import run_reference
from tests.reference import load_model

pytestmark = pytest.mark.quick_to_compile

BOUND = 1.1  # the goal is 1.0; a tenth for what differs between processors
ROWS, LENGTH = 16, 64


@pytest.fixture(scope='module')
def rounded(pair):
  """(the reference in bfloat16, our parameters in bfloat16). The checkpoint's own values are bfloat16."""
  import torch

  params = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), pair.ours.params)
  return load_model(pair.folder, torch.bfloat16), params


def log_probabilities(values) -> np.ndarray:
  values = np.asarray(values, np.float64)
  top = values.max(axis=-1, keepdims=True)
  return values - top - np.log(np.exp(values - top).sum(axis=-1, keepdims=True))


def compare(part, pair, ours, theirs_rounded, theirs, squash=log_probabilities) -> None:
  report.no_worse('bfloat16: ' + part, pair.name, *map(squash, (ours, theirs_rounded, theirs)), bound=BOUND)


def numpy(x) -> np.ndarray:
  return x.detach().float().numpy()


def test_text(pair, rounded):
  import torch

  ids = np.random.default_rng(0).integers(0, 900, (ROWS, LENGTH), np.int32)
  positions = np.broadcast_to(np.arange(LENGTH, dtype=np.float32), (3, ROWS, LENGTH))
  tokens = ThinkerTokens(ids, positions, np.ones((ROWS, LENGTH), np.int32))
  low, params = rounded

  @jax.jit
  def run(params, tokens):
    out, _ = thinker_forward(params, pair.ours.cfg.thinker, tokens, Features(), dtype=jnp.bfloat16)
    return logits(params, out.hidden)

  with torch.no_grad():
    theirs, theirs_rounded = (numpy(m.thinker(input_ids=torch.tensor(ids).long()).logits) for m in (pair.theirs.model, low))
  compare('log-probabilities of text', pair, run(params['thinker'], tokens), theirs_rounded, theirs)


@pytest.mark.parametrize('kind, case', [('audio', 'audio over 30 s'), ('image', 'two images')])
def test_media(pair, rounded, conversations, kind, case):
  import torch

  messages, hear = conversations[case]
  low, params = rounded
  batch = pair.theirs.inputs([messages], hear)
  row = with_their_pixels([pair.ours.processor(messages, audio_in_video=hear, reference_exact=True)], batch)
  theirs = run_reference(pair.theirs.model.thinker, batch, hear)
  floats = ('pixel_values', 'input_features')
  narrow = {name: x.to(torch.bfloat16) if name in floats else x for name, x in batch.items()}
  theirs_rounded = run_reference(low.thinker, narrow, hear)
  cfg = pair.ours.cfg.thinker
  packed = collate(row, cfg)
  features = jax.jit(lambda p, media: decode.encode_media(p, cfg, media, jnp.bfloat16))(params, packed.media)
  index = (packed.tokens.audio_index if kind == 'audio' else packed.tokens.visual_index)[0]
  ours = (features.audio if kind == 'audio' else features.visual)[index[index >= 0]]
  same = lambda x: np.asarray(x, np.float64)
  compare({'audio': 'AuT features', 'image': 'vision features'}[kind], pair, ours, theirs_rounded[kind], theirs[kind], same)

  @jax.jit
  def run(params, tokens, features):
    out, _ = thinker_forward(params, cfg, tokens, features, dtype=jnp.bfloat16)
    return logits(params, out.hidden)

  values = run(params['thinker'], packed.tokens, features)[0, : int(packed.length[0])]
  compare(f'log-probabilities of {kind}', pair, values, theirs_rounded['logits'], theirs['logits'])


def test_speech(pair, rounded):
  """The Talker over random inputs, and the code predictor over its hidden states and random codes."""
  import torch

  cfg = pair.ours.cfg.talker
  low, params = rounded
  rng = np.random.default_rng(1)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
  embeds = draw(ROWS, LENGTH, cfg.text.hidden_size)
  positions = np.broadcast_to(np.arange(LENGTH, dtype=np.float32), (3, ROWS, LENGTH))
  frames, rest = ROWS * 8, cfg.num_code_groups - 1
  D = cfg.code_predictor.hidden_size
  hidden, first = draw(frames, D), draw(frames, D)
  codes = rng.integers(0, cfg.code_predictor.vocab_size, (frames, rest), np.int32)

  @jax.jit
  def run(talker, predictor):
    states, _ = talker_forward(talker, cfg, embeds, positions, jnp.ones((ROWS, LENGTH), jnp.int32))
    return code_logits(talker, states), code_predictor_forward(predictor, cfg, hidden, first, codes)

  def reference(model):
    tensor = lambda x: torch.tensor(np.asarray(x, np.float32)).to(model.dtype)
    talker, predictor = model.talker, model.talker.code_predictor
    with torch.no_grad():
      states = talker.model(inputs_embeds=tensor(embeds), position_ids=torch.tensor(positions.copy()).long()).last_hidden_state
      known = [predictor.model.codec_embedding[q](torch.tensor(codes[:, q]).long()) for q in range(rest - 1)]
      x = torch.stack([tensor(hidden), tensor(first), *known], dim=1)
      y = predictor.model(inputs_embeds=x).last_hidden_state
      heads = torch.stack([predictor.lm_head[q](y[:, q + 1]) for q in range(rest)], dim=1)
      return numpy(talker.codec_head(states)), numpy(heads)

  theirs, theirs_rounded = reference(pair.theirs.model), reference(low)
  ours = run(params['talker'], params['code_predictor'])
  for part, values, narrow, exact in zip(('Talker', 'code predictor'), ours, theirs_rounded, theirs, strict=True):
    compare(f'log-probabilities of the {part}', pair, values, narrow, exact)
