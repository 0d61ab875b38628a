"""Execute tasks on Ray, started by this command or running already."""
