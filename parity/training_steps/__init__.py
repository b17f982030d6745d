"""A training step, stage by stage: the first at which two trainings part, and why."""
