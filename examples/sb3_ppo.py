"""Stable-Baselines3's PPO on the single-agent environment.

    pip install -e '.[examples]'
    python -m examples.sb3_ppo --steps 60000

One agent names the position it wants (`envs.single_agent.PositionEnv`). Training is plain PPO; the one addition is
a curriculum of costs.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from algospace.types import FloatArray
from envs.config import CoreEnvConfig
from envs.single_agent import PositionEnv
from examples.market import ExampleMarket, chunk_cores, chunks, cost_scale, make_market, options, report, unit_core

ENVS, EPISODE_BARS, CHUNKS = 16, 512, 16


class CostCurriculum(BaseCallback):
    """Costs come in slowly (`examples.market.cost_scale`)."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total

    def _on_rollout_start(self) -> None:
        self.training_env.set_attr("cost_scale", cost_scale(self.num_timesteps / self.total))

    def _on_step(self) -> bool:
        return True


def positions_of(model: PPO, market: ExampleMarket, risk_unit: float,
                 count: int = CHUNKS) -> tuple[FloatArray, list[tuple[int, int]]]:
    """Positions (n,) that the most probable actions hold after each row, and the stretches that were played."""
    segments = chunks(market, count)
    envs = [PositionEnv(core) for core in chunk_cores(market, segments, risk_unit)]
    seen = np.stack([env.reset()[0] for env in envs])
    positions = np.zeros(len(market.table))
    for t in range(segments[0][1] - segments[0][0]):
        actions, _ = model.predict(seen, deterministic=True)
        for e, env in enumerate(envs):
            seen[e], _, _, _, info = env.step(actions[e])
            positions[segments[e][0] + t] = info["position"]
    return positions, segments


def main(steps: int = 60_000, seed: int = 0, train_bars: int = 200_000, test_bars: int = 20_000,
         test_seed: int = 9001, scenario: str = "easy", rollout: int = 512) -> dict[str, Any]:
    """Train, play an unseen market, print the scores; returns them."""
    torch.set_num_threads(1)
    train = make_market(seed + 1, train_bars, scenario)
    unseen = make_market(test_seed, test_bars, scenario, train.table.schema)
    config = CoreEnvConfig(mechanics="unit", episode_bars=EPISODE_BARS)
    cores = [unit_core(train, config, seed, env_index=e) for e in range(ENVS)]
    env = DummyVecEnv([lambda core=core: PositionEnv(core) for core in cores])
    model = PPO("MlpPolicy", env, n_steps=rollout, batch_size=4 * rollout, n_epochs=8, learning_rate=1e-4,
                gae_lambda=0.5, ent_coef=0.01, seed=seed, device="cpu")
    started = time.perf_counter()
    model.learn(steps, callback=CostCurriculum(steps))
    seconds = time.perf_counter() - started
    print(f"Stable-Baselines3 PPO: {model.num_timesteps:,} steps in {seconds:.1f} s")
    positions, segments = positions_of(model, unseen, cores[0].risk_unit)
    return report(unseen, positions, segments, "sb3 ppo") | {"steps": model.num_timesteps, "seconds": seconds}


if __name__ == "__main__":
    main(**options(__doc__, 60_000, "environment steps"))
