"""Training on one machine: text to tokens, the loop, exact resuming, evaluation, the report."""

from longcat.train.errors import DataError, RunError
from longcat.train.lr_search import (
    LearningRateSearch,
    is_search,
    learning_rates,
    open_search,
    read_search,
)
from longcat.train.session import Session, finish, open_run, resume_run, train_run
from longcat.train.settings import TrainSettings
from longcat.train.transfer import transferred_settings

__all__ = [
    "DataError",
    "LearningRateSearch",
    "RunError",
    "Session",
    "TrainSettings",
    "finish",
    "is_search",
    "learning_rates",
    "open_run",
    "open_search",
    "read_search",
    "resume_run",
    "train_run",
    "transferred_settings",
]
