"""Rematerialisation: what the backward pass keeps of a layer and what it computes again."""

from collections.abc import Callable

import jax

# By name: what jax.checkpoint saves. 'full': a layer's input alone; 'dots': also the results of matmuls with parameters, but
# neither attention scores nor the experts' grouped matmuls, which are computed again. 'none': everything, without
# jax.checkpoint.
POLICIES: dict[str, Callable | None] = {
  'full': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
NAMES = ('none', *POLICIES)


def rematerialised(layer: Callable, remat: bool | str) -> Callable:
  """layer, for use in a scan. remat: of NAMES; True is 'full', False 'none'."""
  name = remat if isinstance(remat, str) else 'full' if remat else 'none'
  if name == 'none':
    return layer
  if name not in POLICIES:
    raise ValueError(f'remat {remat!r}: expected one of {", ".join(NAMES)}')
  return jax.checkpoint(layer, prevent_cse=False, policy=POLICIES[name])
