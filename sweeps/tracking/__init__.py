"""Runs mirrored to experiment trackers: TensorBoard, Weights & Biases, MLflow, Trackio."""
