"""Walk-forward: train, calibrate and test again and again, each time on later data, and judge the tests joined.

Words: a *window* is one training, validation and test stretch in that order; a *contender* is the policy or
anything it is compared with; the *joined* series is every test's daily profit in time order.

    config.py      WalkForwardConfig, and WalkForwardRun: a run's configuration with a section `walk_forward`
    windows.py     dates of the windows, their rows, their tables (features are computed once for all)
    contenders.py  every contender on one window
    runner.py      windows in order: trained, calibrated, tested, reused, resumed
    statistics.py  figures of a series of days: intervals, Sharpe probabilities, luck
    report.py      the document and its page
"""

from training.walk_forward.config import WalkForwardConfig, WalkForwardRun

__all__ = ["WalkForwardConfig", "WalkForwardRun"]
