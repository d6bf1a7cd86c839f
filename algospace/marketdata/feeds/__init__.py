"""Where live events come from: the `Feed` protocol, replay, pushed feeds, the driver, and the recorder."""

from algospace.marketdata.feeds.handler import DEFAULT_STALE_NS, DataHandler
from algospace.marketdata.feeds.protocol import Feed, MarketEvent
from algospace.marketdata.feeds.queued import QueueFeed
from algospace.marketdata.feeds.recorder import Recorder, read_recording
from algospace.marketdata.feeds.replay import ReplayFeed

__all__ = [
    "DEFAULT_STALE_NS",
    "DataHandler",
    "Feed",
    "MarketEvent",
    "QueueFeed",
    "Recorder",
    "ReplayFeed",
    "read_recording",
]
