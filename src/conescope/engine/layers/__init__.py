"""The layers that have a rule, one file each; importing them registers their interceptions.

A file holds what the recorder does in the place of the layer's operations (`intercepts`), and a
`Call` with the per-sample gradients of its parameters and their sizes. A new layer is a new file
and a new line here.
"""

from conescope.engine.layers import attention as attention
from conescope.engine.layers import cells as cells
from conescope.engine.layers import contraction as contraction
from conescope.engine.layers import convolution as convolution
from conescope.engine.layers import elementwise as elementwise
from conescope.engine.layers import embedding as embedding
from conescope.engine.layers import linear as linear
from conescope.engine.layers import norms as norms
