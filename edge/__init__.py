"""Edge proxy of the air-gapped cluster: the one container on both networks, which forwards connections inwards only."""
