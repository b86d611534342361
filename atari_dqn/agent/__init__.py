"""The agent: Q network, loss, learner, actor, schedules. Knows no environment and no file."""
