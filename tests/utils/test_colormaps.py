"""Color maps against Matplotlib's."""

import matplotlib as mpl
import numpy as np
import pytest

from mae_jax.utils import colormaps


@pytest.mark.parametrize("name", ["inferno", "magma"])
def test_colors_are_matplotlibs(name):
  values = np.linspace(-0.1, 1.1, 500).reshape(20, 25)
  wanted = mpl.colormaps[name](values)[..., :3]
  found = colormaps.apply(name, values)
  assert np.abs(found - wanted).max() <= 0.02
