"""Read finished runs back from TensorBoard and MLflow, and show them."""
