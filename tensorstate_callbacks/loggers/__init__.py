"""Write what scalars can't show to TensorBoard and MLflow."""
