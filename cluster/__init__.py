"""How a run reaches machines. Renders and submits jobs; knows `pipeline.config` and imports no torch."""
