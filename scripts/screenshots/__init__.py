"""Pictures of what users see, for the documentation: the report, TensorBoard, the terminal."""
