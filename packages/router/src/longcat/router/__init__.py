"""Softmax router with zero-computation experts, its bias controller and its balance loss."""

from longcat.router.balance import BalanceLoss, balance_loss, router_gradient_ratio
from longcat.router.config import RouterConfig
from longcat.router.controller import BiasController, ControllerConfig
from longcat.router.router import Choice, Router, Routing
from longcat.router.settle import settle
from longcat.router.similarity import router_similarity

__all__ = [
    "BalanceLoss",
    "BiasController",
    "Choice",
    "ControllerConfig",
    "Router",
    "RouterConfig",
    "Routing",
    "balance_loss",
    "router_gradient_ratio",
    "router_similarity",
    "settle",
]
