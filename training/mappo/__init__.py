"""MAPPO (Yu et al. 2022, arXiv 2103.01955) on RLlib's new API stack.

    settings   hyperparameters                       algorithm  MAPPO(PPO): the loop, checkpoints, lost runners
    tables     mapped market data as torch tensors   runner     TeamRunner(EnvRunner): shards of environments
    module     TeamModule: logits, values, ValueNorm learner    MAPPOLearner: the clipped update, kept lean
    core_team  the main core's module and sampler    risk_team  the same for the M-RMS
    gae        advantages                            loss       the objective, pure functions
"""
