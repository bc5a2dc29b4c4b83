"""Training, on one machine or several: text, the loop, exact resuming, evaluation, report."""

from longcat.train.errors import DataError, RunError
from longcat.train.lr_search import (
    LearningRateSearch,
    is_search,
    learning_rates,
    open_search,
    read_search,
)
from longcat.train.parallel.launch import follow, launched
from longcat.train.parallel.layout import Layout
from longcat.train.session import Session, finish, open_run, resume_run, train_run
from longcat.train.settings import TrainSettings
from longcat.train.transfer import transferred_settings

__all__ = [
    "DataError",
    "Layout",
    "LearningRateSearch",
    "RunError",
    "Session",
    "TrainSettings",
    "finish",
    "follow",
    "is_search",
    "launched",
    "learning_rates",
    "open_run",
    "open_search",
    "read_search",
    "resume_run",
    "train_run",
    "transferred_settings",
]
