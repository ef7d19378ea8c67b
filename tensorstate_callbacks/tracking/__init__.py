"""What scalars can't say: reports in; charts, tables and figures in TensorBoard and MLflow out."""
