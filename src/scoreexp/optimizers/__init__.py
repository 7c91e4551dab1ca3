"""Optimisers beside torch's own."""

from typing import TYPE_CHECKING

from scoreexp import on_first_use

if TYPE_CHECKING:
    from scoreexp.optimizers.muon import Muon as Muon
    from scoreexp.optimizers.muon import orthogonalised as orthogonalised
    from scoreexp.optimizers.schedule_free import ScheduleFreeAdam as ScheduleFreeAdam
    from scoreexp.optimizers.soap import SOAP as SOAP

on_first_use(__name__)
