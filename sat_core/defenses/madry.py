"""Madry et al. 2018: PGD that never stops, then cross entropy on x'."""

from sat_core.defenses import Defense


class Madry(Defense):
    """``min E[max CE(x')]``, the base class as it stands."""
