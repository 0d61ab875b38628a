"""The slow, obvious left-to-right computation that training approximates and decoding must equal.

Plain torch on Hugging Face weights, one row at a time, keys and values in lists: no batches, no passes, no
fused kernels, nothing shared with the model. For the methods with latent thoughts it solves the triangular
system of definitions 2.1 exactly; for all others it is the forward itself. `training.py` has the
passes by which PonderLM-3 is trained instead, one row at a time too.

Read `slots.py` and `iterations.py` for the rule of each method and what its rows see, `method.py` for what
all methods do, `backbone.py` for the layers.
"""

from megatron_ext.ponder.reference.backbone import Backbone
from megatron_ext.ponder.reference.method import TokenResult
from megatron_ext.ponder.reference.sequential import SequentialOracle

__all__ = ["Backbone", "SequentialOracle", "TokenResult"]
