"""atari_dqn: a prioritized, dueling, double DQN fed by many worker processes.

Nothing is imported here on purpose: a worker process imports `atari_dqn.envs` and must not pay for torch.
"""

__version__ = "0.1.0"
