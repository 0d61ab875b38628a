"""When a forward of several passes renews what the router has decided (definitions 2.5, 2.8).

Native models and exported ones share this module, so it imports nothing but the standard library.

K = latent thoughts, J = refinement sweeps. A forward has K build-up passes, J sweeps and a final pass.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """How the router's distribution over steps is carried through the passes of a forward.

    The distribution that a pass leaves behind weighs the keys of the next one.

    Attributes:
        pre_pass: the first pass decides for all build-up passes and the first sweep; it is the pass over slot
            0 alone that a forward begins with anyway.
        damping: share of the newest distribution in the one after a sweep, in (0, 1]; the rest is the old
            one's.
        undamped_sweeps: so many last sweeps take the newest outright.
        reads_last_sweep: the final pass is read by the distribution that weighs its keys, and the router is
            not asked again.
    """

    pre_pass: bool = False
    damping: float = 1.0
    undamped_sweeps: int = 1
    reads_last_sweep: bool = False

    def share(self, index: int, *, num_thoughts: int, num_sweeps: int) -> float:
        """Return the share of the newest distribution after a pass; at 0 the router is not asked.

        Args:
            index: of the pass, from 0.
            num_thoughts: K.
            num_sweeps: J.
        """
        if index == 0:
            return 1.0
        if index < num_thoughts:
            return 0.0 if self.pre_pass else 1.0
        if index == num_thoughts + num_sweeps:
            return 0.0 if self.reads_last_sweep else 1.0
        sweep = index - num_thoughts + 1
        return self.damping if sweep <= num_sweeps - self.undamped_sweeps else 1.0


ALWAYS = Renewal()
"""Every pass decides."""
