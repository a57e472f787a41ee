"""Records packed together are to the model what they are alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwen3_omni_jax.train.data import ExampleStream, Loader
from qwen3_omni_jax.train.packing import PlacedExample, assemble_batch
from qwen3_omni_jax.train.records import KINDS
from qwen3_omni_jax.train.room import Bins, ExampleSize, LaneShape

from qwen3_omni_jax.infer.collate import Media, collate
from qwen3_omni_jax.infer.decode import encode_media
from qwen3_omni_jax.media.image import ImageSettings, normalise_rows
from qwen3_omni_jax.media.processor import Processor
from qwen3_omni_jax.models.thinker import logits, thinker_forward
from qwen3_omni_jax.weights.load import load_params
from tests.train.data_folder import chat_records, small_config, write_jsonl

pytestmark = pytest.mark.quick_to_compile

# float32 sums in another order. Gradients: of the largest entry of each parameter. That of the audio encoder's key biases is zero
# but for rounding, since they add the same to all scores of a query, which a softmax does not see: of the largest of all.
LOSS_RTOL = 2e-6
GRADIENT_RTOL = 2e-5
KEY_BIAS, KEY_BIAS_FLOOR = "['audio']['layers']['attn']['k']['bias']", 1e-3
FEATURE_RTOL = 2e-5  # of the largest feature


IMAGES = ImageSettings(mean=(0.5,) * 3, std=(0.5,) * 3, patch=16)  # the tiny checkpoint's


@pytest.fixture(scope='module')
def setting(tiny_folder, samples, tmp_path_factory):
  """(model config, parameters in float32, one example each of audio, images, video with sound, text; room for all of them)."""
  root = samples['audio'].parent
  path = write_jsonl(tmp_path_factory.mktemp('packing') / 'records.jsonl', chat_records(samples))
  processor = Processor.from_folder(tiny_folder)
  params = load_params(tiny_folder, processor.cfg, dtype='float32', parts=('audio', 'vision', 'thinker'))
  stream = ExampleStream(small_config(path, root, shuffle=False), processor)
  examples = [stream[k].examples[0] for k in (0, 1, 2, 3, 4)]
  assert {KINDS[example.kind] for example in examples} == {'text', 'audio', 'image', 'mixed'}
  shape = LaneShape(rows=1, length=768, audio_rows=2, chunks=8, visual_rows=1, patches=1024)
  return processor.cfg.thinker, jax.tree.map(jnp.asarray, params), examples, shape


def normalised(inputs):
  """With patches as they come from the processor by default."""
  visuals = []
  for visual in inputs.visuals:
    patches = np.empty(visual.patches.shape, np.float32)
    normalise_rows(visual.patches, IMAGES, patches)
    visuals.append(dataclasses.replace(visual, patches=patches))
  return dataclasses.replace(inputs, visuals=tuple(visuals))


def packed(examples, shape, cfg):
  bins = Bins.of(shape)
  return assemble_batch([(0, [PlacedExample(e, *bins.place(ExampleSize.of(e, cfg))) for e in examples])], shape, cfg, IMAGES)


def test_pictures_wait_as_bytes_and_are_then_to_the_bit_what_the_processor_makes(setting, tiny_folder, samples):
  cfg, _, examples, shape = setting
  example = examples[1]  # two pictures
  processor = Processor.from_folder(tiny_folder)
  processor.images = dataclasses.replace(processor.images, max_pixels=256 * 256)
  picture = {'type': 'image', 'image': str(samples['image'])}
  plain = processor([{'role': 'user', 'content': [picture, picture]}]).visuals
  assert [v.patches.dtype for v in (*example.inputs.visuals, *plain)] == [np.uint8] * 2 + [np.float32] * 2
  expected = np.concatenate([v.patches for v in plain])
  got = packed([example], shape, cfg).media.visual[0]
  np.testing.assert_array_equal(got.patches[0, : len(expected)], expected)
  assert not got.patches[0, len(expected) :].any() and got.patches.dtype == np.float32


def test_encoder_rows_shared_by_clips_and_frames_give_each_its_own_features(setting):
  cfg, params, examples, shape = setting
  batch = packed(examples, shape, cfg)
  assert np.asarray(batch.media.audio[0].segment).max() > 1 and np.asarray(batch.media.visual[0].segment).max() > 1
  shared = encode_media(params, cfg, batch.media)
  alone = collate([normalised(e.inputs) for e in examples], cfg)  # as inference packs: a row for each window and each frame
  own = encode_media(params, cfg, alone.media)
  pick = lambda features, index: np.asarray(features)[..., np.asarray(index)[np.asarray(index) >= 0], :]
  for name, where in (('audio', 'audio_index'), ('visual', 'visual_index'), ('deepstack', 'visual_index')):
    a = pick(getattr(shared, name), getattr(batch.tokens, where))
    b = pick(getattr(own, name), getattr(alone.tokens, where))
    np.testing.assert_allclose(a, b, rtol=0, atol=FEATURE_RTOL * np.abs(b).max(), err_msg=name)


def summed_loss(params, cfg, batch):
  """Summed cross-entropy: of a batch, the sum of its records'."""
  out, _ = thinker_forward(params['thinker'], cfg, batch.tokens, encode_media(params, cfg, batch.media))
  logp = jax.nn.log_softmax(logits(params['thinker'], out.hidden))
  picked = jnp.take_along_axis(logp, batch.targets[..., None], axis=-1)[..., 0]
  return -(picked * batch.weights).sum()


loss_and_gradient = jax.jit(jax.value_and_grad(summed_loss), static_argnames='cfg')


def test_packed_losses_and_gradients_equal_those_of_the_records_alone(setting):
  cfg, params, examples, shape = setting
  loss, gradient = loss_and_gradient(params, cfg, packed(examples, shape, cfg))
  alone, alone_gradient = 0.0, jax.tree.map(jnp.zeros_like, params)
  for example in examples:
    value, one = loss_and_gradient(params, cfg, packed([example], shape, cfg))
    alone, alone_gradient = alone + value, jax.tree.map(jnp.add, alone_gradient, one)
  assert float(loss) == pytest.approx(float(alone), rel=LOSS_RTOL)
  largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(alone_gradient))
  wrong = []
  for (where, a), b in zip(jax.tree.leaves_with_path(alone_gradient), jax.tree.leaves(gradient), strict=True):
    name, size = jax.tree_util.keystr(where), float(jnp.abs(a).max())
    error = float(jnp.abs(a - b).max()) / (max(size, KEY_BIAS_FLOOR * largest) if name == KEY_BIAS else size)
    if not error <= GRADIENT_RTOL:
      wrong.append(f'{name}: {error:.1e}')
  assert not wrong, '\n'.join(wrong)


def test_tokens_of_media_point_at_their_features_whatever_lane_they_are_in(setting):
  cfg, _, examples, shape = setting
  bins = Bins.of(shape)
  placed = [PlacedExample(e, *bins.place(ExampleSize.of(e, cfg))) for e in examples]
  first, third = assemble_batch([(0, placed)], shape, cfg, IMAGES), assemble_batch([(2, placed)], shape, cfg, IMAGES)
  whole = assemble_batch([(0, []), (1, []), (2, placed)], shape, cfg, IMAGES)
  assert (third.media.lanes, whole.media.lanes) == (1, 3)
  for name, per_lane in (('audio_index', 2 * 8 * 13), ('visual_index', 1024 // 4)):
    a, b = np.asarray(getattr(first.tokens, name)), np.asarray(getattr(third.tokens, name))
    np.testing.assert_array_equal(np.where(a >= 0, a + 2 * per_lane, -1), b)
    np.testing.assert_array_equal(np.asarray(getattr(whole.tokens, name))[2:], b)
  pads = np.isin(first.tokens.ids, (cfg.audio_token_id, cfg.image_token_id, cfg.video_token_id))
  np.testing.assert_array_equal(pads, (np.asarray(first.tokens.audio_index) >= 0) | (np.asarray(first.tokens.visual_index) >= 0))
  assert not np.asarray(first.weights)[:, :-1][pads[:, 1:]].any(), 'a pad token is to be predicted'


def test_best_fit_never_overfills_and_takes_the_fullest_bin():
  shape = LaneShape(rows=2, length=10, audio_rows=1, chunks=4, visual_rows=1, patches=8)
  bins = Bins.of(shape)
  assert bins.place(ExampleSize(6, (), ())) == (0, [], [], [])
  assert bins.place(ExampleSize(7, (3,), ())) == (1, [0], [], [])
  assert bins.place(ExampleSize(3, (), (8,))) == (1, [], [0], [])  # the row with 3 left, not the one with 4
  assert bins.place(ExampleSize(1, (2,), ())) is None  # one chunk of audio is left
  assert bins.place(ExampleSize(1, (), (4,))) is None
  assert bins.place(ExampleSize(4, (1,), ())) == (0, [0], [], [])
  assert (bins.text, bins.audio, bins.visual) == ([0, 0], [0], [0])


@pytest.mark.parametrize(
  'size, complaint',
  [
    (ExampleSize(11, (), ()), '11 tokens; a row has 10'),
    (ExampleSize(5, (), (9,)), 'a picture of 9 patches; an encoder row has 8'),
    (ExampleSize(5, (4, 1), ()), '5 s of audio in 2 windows'),
  ],
)
def test_what_can_never_fit_is_refused_with_the_size_to_raise(size, complaint):
  with pytest.raises(ValueError, match=complaint):
    size.check(LaneShape(rows=2, length=10, audio_rows=1, chunks=4, visual_rows=1, patches=8))


def test_a_target_is_the_token_after_and_has_the_weight_of_that_token(setting):
  cfg, _, examples, shape = setting
  chosen = [examples[4], examples[4]]  # twice a text, in one row
  batch = packed(chosen, dataclasses.replace(shape, audio_rows=0, visual_rows=0), cfg)
  begin = 0
  for example in chosen:
    ids, learn = example.inputs.ids, example.learn
    for at in range(len(ids) - 1):
      assert batch.targets[0, begin + at] == ids[at + 1] and batch.weights[0, begin + at] == learn[at + 1]
    assert batch.weights[0, begin + len(ids) - 1] == 0  # the last token of a record predicts none of the next record
    begin += len(ids)
  assert batch.weights.sum() == 2 * learn[1:].sum() > 0 and len(set(ids)) > 5


def test_a_batch_without_media_budgets_has_no_media(setting):
  cfg, _, examples, _ = setting
  shape = LaneShape(rows=1, length=768, audio_rows=0, chunks=8, visual_rows=0, patches=4)
  assert packed(examples[4:], shape, cfg).media == Media()
  with pytest.raises(ValueError, match='audio_s, visual_patches'):
    ExampleSize.of(examples[0], cfg).check(shape)


def test_a_long_document_is_cut_between_words_and_nothing_is_lost(tiny_folder, samples, tmp_path):
  text = 'A long text about a red disc. ' * 60 + '<image>' + 'And after it. ' * 90
  path = write_jsonl(tmp_path / 'doc.jsonl', [{'text': text, 'images': [samples['image'].name]}])
  processor = Processor.from_folder(tiny_folder)
  cfg = small_config(path, samples['image'].parent, length=200, rows=1, buffer=20, epochs=1)
  source = cfg.sources[0].__class__(path=str(path), form='document', media_root=str(samples['image'].parent))
  cfg = cfg.__class__(**{**vars(cfg), 'sources': (source,)})
  pieces = ExampleStream(cfg, processor)[0].examples
  whole = ExampleStream(cfg.__class__(**{**vars(cfg), 'length': 4096}), processor)[0].examples[0]
  assert len(pieces) > 3 and max(len(p.learn) for p in pieces) <= 200
  np.testing.assert_array_equal(np.concatenate([p.inputs.ids for p in pieces]), whole.inputs.ids)
  assert [len(p.inputs.visuals) for p in pieces].count(1) == 1
  for piece in pieces:
    assert piece.inputs.positions[:, 0].tolist() == [0, 0, 0]
  assert whole.inputs.ids[-1] == processor.tokenizer.token_id('<|endoftext|>') and whole.learn[-1]
  with pytest.raises(ValueError, match='a row has 200'):
    next(Loader(cfg.__class__(**{**vars(cfg), 'split_documents': False}), processor))
