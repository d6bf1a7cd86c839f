"""Stock libraries as users of the environments. Each example is one file and a small market that it makes itself.

    python -m examples.sb3_ppo          Stable-Baselines3's PPO, one agent that names its position
    python -m examples.rllib_ppo        RLlib's PPO with its default networks, a team of four agents

Both print where they end up between the exact limit of the market (what the best possible trader earns) and plain
rules at the same costs. They show how to connect a library, not how to train well: `algospace quickstart` does.
"""
