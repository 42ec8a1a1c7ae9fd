"""Numbers of perf that the administrator may set: how often events may sample, and how long that may take.

Plain Python: kernel/events/core.c, perf_event_max_sample_rate_handler() and its neighbours. What they mean
at an overflow is in perf/throttle.py.
"""

from __future__ import annotations

from typing import Any

MAX_SAMPLE_RATE = 100_000  # DEFAULT_MAX_SAMPLE_RATE
CPU_TIME_MAX_PERCENT = 25  # DEFAULT_CPU_TIME_MAX_PERCENT


def set_sample_rate(config: Any, rate: int) -> None:
    """perf_event_max_sample_rate_handler(): `rate` samples of one event in a second, 1 at least."""
    config.max_sample_rate = rate
    config.max_samples_per_tick = -(-rate // int(config.hz))
    _update_perf_cpu_limits(config)


def set_cpu_time_max_percent(config: Any, percent: int) -> None:
    """perf_cpu_time_max_percent_handler(): what samples may take of a CPU; 0 and 100 leave it open."""
    config.cpu_time_max_percent = percent
    _update_perf_cpu_limits(config)


def _update_perf_cpu_limits(config: Any) -> None:
    second = int(config.core_khz) * 1000 * 16
    percent = int(config.cpu_time_max_percent)
    allowed = second // int(config.max_sample_rate) * percent // 100
    config.sample_allowed = max(1, allowed) if 0 < percent < 100 else 0
