"""What the sources of our CartPole and LunarLander experiments claim, beside what five seeds of each give here.

Flows in: `python -m experiments.claims`, which runs them. Flows out: experiments/results/claims/.
"""
