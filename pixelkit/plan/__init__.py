"""resolve(preset, base, hardware) -> Plan: frozen, every number final."""

from pixelkit.plan.model import DatasetPlan, NetworkPlan, Plan, PlannedSprite, SamplePlan, TrainPlan
from pixelkit.plan.resolve import resolve
from pixelkit.plan.terms import absorb_kohya

__all__ = ["DatasetPlan", "NetworkPlan", "Plan", "PlannedSprite", "SamplePlan", "TrainPlan", "absorb_kohya", "resolve"]
