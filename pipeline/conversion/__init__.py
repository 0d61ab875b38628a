"""Models in the folder format of Hugging Face to checkpoints of this program, and back."""
