"""The cluster's door: the one container that stands on both sides of the wall, and passes connections inwards only."""
