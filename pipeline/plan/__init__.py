"""What a run will need and how long it will take, computed from its settings before anything is started."""
