"""Why two models part at a culprit: hypotheses, each tried on what the culprit was given."""
