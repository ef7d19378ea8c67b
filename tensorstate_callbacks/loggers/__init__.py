"""What scalars can't say, for TensorBoard and MLflow."""
