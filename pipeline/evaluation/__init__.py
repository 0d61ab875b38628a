"""What a trained model is worth: losses by source, sweeps over steps and thresholds, and public tasks."""
