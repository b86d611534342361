"""The claims of the sources of our CartPole and LunarLander experiments, compared with five seeds of each.

`python -m experiments.claims` runs them and writes experiments/results/claims/.
"""
