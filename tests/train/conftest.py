"""What several test files of training need."""

import gc
import sys

import pytest


@pytest.fixture
def failed_reads(monkeypatch):
  """For tests in which Orbax meets a damaged file: the other reads that it had begun end when they are collected, with exceptions
  that nobody waits for. They are to end in the test that made them, and are no errors."""
  monkeypatch.setattr(sys, 'unraisablehook', lambda _: None)
  yield
  gc.collect()
