"""Rematerialisation: what the backward pass keeps of a layer and what it computes again.

What is expensive is named where it is made, inside the forward rules of custom gradients too: `jax.checkpoint` sees neither a
grouped matmul nor an attention kernel as the matmul that it is.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

ATTENTION = 'attention'  # results of attention and the denominators of its softmax, where a kernel keeps them
EXPERTS = 'experts'  # products with the experts' gate and up, and what came back of each pair of token and expert
_CUDNN_FORWARD = 'dot_product_attention_fwd'  # jax's own primitives, whose results cannot be named


def named(x, name: str):
  """x, which policies know by `name`."""
  return jax.tree.map(lambda a: checkpoint_name(a, name), x)


def _by_name(*names: str) -> Callable:
  save = jax.checkpoint_policies.save_only_these_names(*names)

  def policy(primitive, *avals, **params):
    return save(primitive, *avals, **params) or ATTENTION in names and primitive.name.startswith(_CUDNN_FORWARD)

  return policy


# By name: what jax.checkpoint saves of a layer beside its input, from little to much. With 8 experts of width 768 active in a
# width of 2,048, bfloat16, a token and layer keeps 4 KB with 'full', 12 with 'attention', 69 with 'experts', 84 with 'dots'; the
# experts' products once more for each multiple of the balanced load that Dispatch.buffer makes room for.
POLICIES: dict[str, Callable | None] = {
  'full': None,  # nothing
  'attention': _by_name(ATTENTION),
  'experts': _by_name(ATTENTION, EXPERTS),
  # also matmuls with parameters
  'dots': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _by_name(ATTENTION, EXPERTS)
  ),
  # as 'experts', what is of the experts in the memory of the host (libtpu 0.0.52 cannot move the softmax's denominators there)
  'offload': jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[ATTENTION],
    names_which_can_be_offloaded=[EXPERTS],
    offload_src='device',
    offload_dst='pinned_host',
  ),
}
NAMES = ('none', *POLICIES)  # 'none': everything, without jax.checkpoint


def rematerialised(layer: Callable, remat: bool | str) -> Callable:
  """layer, for use in a scan. remat: of NAMES; True is 'full', False 'none'."""
  name = remat if isinstance(remat, str) else 'full' if remat else 'none'
  if name == 'none':
    return layer
  if name not in POLICIES:
    raise ValueError(f'remat {remat!r}: expected one of {", ".join(NAMES)}')
  return jax.checkpoint(layer, prevent_cse=False, policy=POLICIES[name])
